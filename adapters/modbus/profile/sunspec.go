package profile

import (
	_ "embed" // the models
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"holdfast/adapters"
	"holdfast/adapters/modbus"
)

// SunSpecName is what devices that say themselves what they have name as their
// profile.
const SunSpecName = "sunspec"

//go:embed sunspec.txt
var modelFile string

// model is a SunSpec information model, as far as it is read.
type model struct {
	ids     []uint16
	prefix  string
	lengths []int // of the fixed part
	points  []modelPoint
	// repeat is the length of the blocks behind the fixed part, 0 for none.
	repeat       int
	repeatPrefix string
	repeated     []modelPoint
}

type modelPoint struct {
	offset       int
	name         string
	typ          string // as modbus.Point.Type
	length       int
	factor       int // offset of the scale factor; -1 for none
	unit         string
	class, state string
	invalid      []int64
	detail       bool
}

// models are those of sunspec.txt by their ids.
var models = sync.OnceValue(func() map[uint16]*model {
	ms, err := parseModels(modelFile)
	if err != nil {
		panic("profile: " + err.Error()) // the program's own file
	}
	return ms
})

func parseModels(text string) (map[uint16]*model, error) {
	all := map[uint16]*model{}
	var m *model
	line := 0
	for raw := range strings.SplitSeq(text, "\n") {
		line++
		words := strings.Fields(raw)
		var err error
		switch {
		case len(words) == 0 || words[0] == "#":
		case words[0] == "model":
			if m, err = parseModel(words[1:]); err == nil {
				for _, id := range m.ids {
					all[id] = m
				}
			}
		case m == nil || len(words) < 3:
			err = errors.New("want a model, then its points")
		case words[0] == "repeat":
			m.repeat, err = strconv.Atoi(words[1])
			m.repeatPrefix = words[2]
		default:
			var p modelPoint
			if p, err = parseModelPoint(words); err != nil {
				break
			}
			if m.repeat > 0 {
				m.repeated = append(m.repeated, p)
			} else {
				m.points = append(m.points, p)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("sunspec.txt:%d: %w", line, err)
		}
	}
	return all, nil
}

func parseModel(words []string) (*model, error) {
	if len(words) < 3 {
		return nil, errors.New("want ids, prefix and length")
	}
	m := &model{prefix: words[1]}
	for id := range strings.SplitSeq(words[0], ",") {
		n, err := strconv.ParseUint(id, 10, 16)
		if err != nil {
			return nil, err
		}
		m.ids = append(m.ids, uint16(n))
	}
	for _, w := range words[2:] {
		n, err := strconv.Atoi(w)
		if err != nil {
			return nil, err
		}
		m.lengths = append(m.lengths, n)
	}
	return m, nil
}

func parseModelPoint(words []string) (modelPoint, error) {
	if len(words) < 5 {
		return modelPoint{}, errors.New("want offset, name, type, scale factor and unit")
	}
	p := modelPoint{name: words[1], typ: words[2], factor: -1}
	var err error
	if p.offset, err = strconv.Atoi(words[0]); err != nil {
		return modelPoint{}, err
	}
	if at, ok := strings.CutPrefix(words[3], "@"); ok {
		if p.factor, err = strconv.Atoi(at); err != nil {
			return modelPoint{}, err
		}
	}
	if words[4] != "-" {
		p.unit = words[4]
	}
	// What the types are on the wire, and what stands there when a point is not
	// implemented (SunSpec Device Information Model Specification V1.2 §4.2).
	switch p.typ {
	case "int16":
		p.invalid = []int64{0x8000}
	case "uint16":
		p.invalid = []int64{0xffff}
	case "enum16":
		p.typ, p.invalid, p.state = "uint16", []int64{0xffff}, adapters.NoClass
	case "bitfield32":
		p.typ, p.invalid, p.state = "uint32", []int64{0xffffffff}, adapters.NoClass
	case "uint32":
		p.invalid = []int64{0xffffffff}
	case "acc32":
		p.typ, p.invalid = "uint32", []int64{0}
	case "float32": // not a number
	default:
		n, ok := strings.CutPrefix(p.typ, "string")
		if p.length, err = strconv.Atoi(n); err != nil || !ok {
			return modelPoint{}, fmt.Errorf("no type %q", p.typ)
		}
		p.typ = "string"
	}
	for _, w := range words[5:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "class":
			p.class = value
		case "state":
			p.state = value
		case "detail":
			p.detail = true
		default:
			return modelPoint{}, fmt.Errorf("no option %q", w)
		}
	}
	return p, nil
}

// SunSpec plans the points of a device from the SunSpec models that it has.
type SunSpec struct {
	// Points are patterns of the names of the points that are read; none means
	// all but the details.
	Points []string
}

// Where the models may start (SunSpec Device Information Model Specification
// V1.2 §6.2.1), most likely first.
var bases = []uint16{40000, 0, 50000}

const (
	// maxModels bounds the walk: a device with more is walking in circles.
	maxModels = 64
	// maxModules bounds the blocks of a model that repeats.
	maxModules  = 64
	endOfModels = 0xffff
)

var marker = []byte("SunS")

// Discover begins a walk through the models of a device.
func (s SunSpec) Discover(registers int) modbus.Discovery {
	return &walk{choose: s.Points, max: registers}
}

// model1 is the part of model 1 that tells one device from another: maker, model
// and serial number, with what stands between.
const (
	commonID   = 1
	identities = 64
)

// step is what a walk asks next.
type step uint8

const (
	stepMarker step = iota // "SunS"
	stepHead               // id and length of a model
	stepCommon             // what tells the device from others
	stepDone
)

// walk is one way through the models of a device.
type walk struct {
	choose []string
	max    int

	step   step
	base   int // of bases
	at     int // where the model is, or what is read of it
	length int // of the model
	model  *model

	seen   int
	names  map[string]int // of prefixes
	points []Point
	ids    []string
	notes  []string
	tried  []string
	same   modbus.Registers
	err    error
}

// Next returns what is to be read now.
func (w *walk) Next() (addr, count uint16) {
	switch w.step {
	case stepMarker:
		return bases[w.base], 2
	case stepHead:
		return uint16(w.at), 2
	case stepCommon:
		return uint16(w.at + 2), uint16(min(identities, w.max))
	default:
		return 0, 0
	}
}

// Answer takes what the device said.
func (w *walk) Answer(data []byte, err error) {
	switch w.step {
	case stepMarker:
		w.marked(data, err)
	case stepHead:
		w.head(data, err)
	case stepCommon:
		if err != nil {
			w.fail(fmt.Errorf("model 1 at %d cannot be read: %w", w.at, err))
			return
		}
		w.same = modbus.Registers{Addr: uint16(w.at + 2), Data: slices.Clone(data)}
		w.add()
		w.next()
	case stepDone:
	}
}

func (w *walk) fail(err error) { w.step, w.err = stepDone, err }

func (w *walk) notef(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

func (w *walk) marked(data []byte, err error) {
	if err == nil && string(data) == string(marker) {
		w.step, w.at, w.names = stepHead, int(bases[w.base])+2, map[string]int{}
		return
	}
	why := "something else"
	if err != nil {
		why = err.Error()
	}
	w.tried = append(w.tried, fmt.Sprintf("at %d %s", bases[w.base], why))
	if w.base++; w.base == len(bases) {
		w.fail(errors.New("no SunSpec device: where it should say SunS there is " + strings.Join(w.tried, ", ")))
	}
}

func (w *walk) head(data []byte, err error) {
	if err != nil {
		e, refused := errors.AsType[*modbus.ExceptionError](err)
		if refused && (e.Code == modbus.IllegalDataAddress || e.Code == modbus.IllegalDataValue) && w.same.Data != nil {
			w.notef("the list of models has no end at %d: %v", w.at, err)
			w.step = stepDone
			return
		}
		w.fail(fmt.Errorf("the model at %d cannot be read: %w", w.at, err))
		return
	}
	id, length := binary.BigEndian.Uint16(data), int(binary.BigEndian.Uint16(data[2:]))
	switch w.seen++; {
	case id == endOfModels:
		w.step = stepDone
		return
	case w.same.Data == nil && id != commonID:
		w.fail(fmt.Errorf("the first model is %d, not 1", id))
		return
	case id == 0 || length == 0:
		w.notef("the list of models breaks off at %d: model %d of %d registers", w.at, id, length)
		w.step = stepDone
		return
	case w.seen > maxModels:
		w.notef("the list of models has no end within %d models", maxModels)
		w.step = stepDone
		return
	}
	w.length, w.model = length, models()[id]
	w.ids = append(w.ids, strconv.Itoa(int(id)))
	switch m := w.model; {
	case m == nil: // one that is not read
		w.next()
	case w.at+2+length > 1<<16:
		w.notef("model %d of %d registers at %d goes past the last register", id, length, w.at)
		w.step = stepDone
	case m.repeat > 0 && (length < m.lengths[0] || (length-m.lengths[0])%m.repeat != 0),
		m.repeat == 0 && !slices.Contains(m.lengths, length):
		if id == commonID {
			w.fail(fmt.Errorf("model 1 has %d registers, not %s", length, m.size()))
			return
		}
		w.notef("model %d has %d registers, not %s: it is not read", id, length, m.size())
		w.next()
	case id == commonID && w.same.Data == nil:
		w.step = stepCommon
	default:
		w.add()
		w.next()
	}
}

// size says how long the model is.
func (m *model) size() string {
	var sizes []string
	for _, n := range m.lengths {
		sizes = append(sizes, strconv.Itoa(n))
	}
	text := strings.Join(sizes, " or ")
	if m.repeat > 0 {
		text += fmt.Sprintf(" and a multiple of %d", m.repeat)
	}
	return text
}

// next goes on behind the model.
func (w *walk) next() {
	w.at += 2 + w.length
	w.step = stepHead
	if w.at+2 > 1<<16 {
		w.notef("the list of models has no end")
		w.step = stepDone
	}
}

// add takes the points of the model.
func (w *walk) add() {
	m := w.model
	prefix := ""
	if m.prefix != "-" {
		prefix = w.prefix(m.prefix) + "_"
	} else if w.names[m.prefix]++; w.names[m.prefix] > 1 {
		prefix = fmt.Sprintf("device%d_", w.names[m.prefix])
	}
	data := w.at + 2
	for _, p := range m.points {
		w.point(prefix, data, data, p)
	}
	if m.repeat == 0 {
		return
	}
	modules := (w.length - m.lengths[0]) / m.repeat
	if modules > maxModules {
		w.notef("of %d blocks of model %s the first %d are read", modules, w.ids[len(w.ids)-1], maxModules)
		modules = maxModules
	}
	for i := range modules {
		for _, p := range m.repeated {
			w.point(fmt.Sprintf("%s%d_", strings.TrimSuffix(prefix, "_"), i+1), data, data+m.lengths[0]+i*m.repeat, p)
		}
	}
}

// prefix numbers the second and further models of a kind.
func (w *walk) prefix(name string) string {
	w.names[name]++
	if n := w.names[name]; n > 1 {
		return fmt.Sprintf("%s%d", name, n)
	}
	return name
}

// point adds one point whose block is at block, in the model whose data are at
// data.
func (w *walk) point(prefix string, data, block int, p modelPoint) {
	at := block + p.offset
	o := modbus.Point{
		Name: prefix + p.name, Register: fmt.Sprintf("holding:%d", at), Type: p.typ, Length: p.length,
		Unit: p.unit, DeviceClass: p.class, StateClass: p.state, Invalid: p.invalid,
	}
	if p.factor >= 0 {
		factor := data + p.factor
		if n := max(at+2, factor+1) - min(at, factor); n > w.max {
			w.notef("%s is not read: it and its scale factor do not fit one request", o.Name)
			return
		}
		o.ScaleRegister = fmt.Sprintf("holding:%d", factor)
	}
	w.points = append(w.points, Point{Point: o, Detail: p.detail})
}

// Result returns what the device has.
func (w *walk) Result() (modbus.Discovered, error) {
	if w.err != nil {
		return modbus.Discovered{}, w.err
	}
	names := make([]string, len(w.points))
	for i, p := range w.points {
		names[i] = p.Name
	}
	out := modbus.Discovered{Same: w.same, About: "SunSpec models " + strings.Join(w.ids, ", "), Notes: w.notes}
	for _, pattern := range w.choose {
		if _, err := chosen([]string{pattern}, names, nil); err != nil {
			out.Notes = append(out.Notes, fmt.Sprintf("%q matches none of the points", pattern))
		}
	}
	for _, p := range w.points {
		if len(w.choose) == 0 && !p.Detail || anyMatch(w.choose, p.Name) {
			out.Points = append(out.Points, p.Point)
		}
	}
	if len(out.Points) == 0 {
		return modbus.Discovered{}, fmt.Errorf("the device has %s, and none of their points is to be read", out.About)
	}
	return out, nil
}

var _ modbus.Discoverer = SunSpec{}
