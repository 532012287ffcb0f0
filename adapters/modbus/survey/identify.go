package survey

import (
	"context"
	"strings"
	"time"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/profile"
)

// Identity is what is known of a unit.
type Identity struct {
	// Objects are what it says of itself (MODBUS Application Protocol V1.1b3
	// §6.21), by their names in the specification.
	Objects map[string]string `json:"identification,omitempty"`
	// Profiles are those that fit, the best first.
	Profiles []Fit `json:"profiles,omitempty"`
	// SunSpec says what a SunSpec device says of itself.
	SunSpec string `json:"sunspec,omitempty"`
}

// Fit is a profile that fits a unit; see [profile.Found].
type Fit struct {
	Profile string `json:"profile"`
	Title   string `json:"title"`
	Certain bool   `json:"certain"`
}

// String says it in a few words: maker, product and revision.
func (id Identity) String() string {
	var words []string
	for _, name := range []string{"VendorName", "ProductCode", "MajorMinorRevision"} {
		if v := strings.TrimSpace(id.Objects[name]); v != "" {
			words = append(words, v)
		}
	}
	if len(words) == 0 {
		return id.SunSpec
	}
	return strings.Join(words, " ")
}

// maxObjects bounds the text of one object.
const maxObjects = 64

// Identify asks a unit that is there who it is, and which of the profiles fit it.
// A unit that keeps silent where it should refuse costs a timeout each time, and
// its quarantine; after three such in a row it is left alone. The error is that of
// the line or of ctx.
func Identify(ctx context.Context, do modbus.Do, unit byte, profiles []*profile.Profile, timeout time.Duration) (Identity, error) {
	id := Identity{}
	known := profile.Identification{Registers: map[profile.Question][]byte{}, Objects: map[int]string{}}
	ask := func(ctx context.Context, r modbus.Request) ([]byte, error) { return do(ctx, r, timeout) }
	objects, err := modbus.Identify(ctx, ask, unit, modbus.IdentifyBasic)
	if given(err) {
		return id, err
	}
	for _, o := range objects {
		if id.Objects == nil {
			id.Objects = map[string]string{}
		}
		text := strings.TrimRight(string(o.Value[:min(len(o.Value), maxObjects)]), "\x00 ")
		id.Objects[o.Name()], known.Objects[int(o.ID)] = text, text
	}
	silent := 0
	read := func(r modbus.Request) ([]byte, error) {
		data, err := do(ctx, r, timeout)
		if modbus.Alive(err) {
			silent = 0
		} else {
			silent++
		}
		return data, err
	}
	for _, q := range profile.Questions(profiles) {
		if q.Count == 0 || silent >= maxSilent {
			continue
		}
		data, err := read(modbus.Request{Unit: unit, Function: q.Register.Table.Read(), Addr: q.Register.Addr, Count: uint16(q.Count)})
		if given(err) {
			return id, err
		}
		if err == nil {
			known.Registers[q] = data
		}
	}
	for _, f := range profile.Match(profiles, known) {
		id.Profiles = append(id.Profiles, Fit{f.Profile.Name, f.Profile.Title, f.Certain})
	}
	walk := profile.SunSpec{}.Discover(modbus.MaxReadRegisters)
	for silent < maxSilent {
		addr, count := walk.Next()
		if count == 0 {
			if found, err := walk.Result(); err == nil {
				id.SunSpec = found.About
				id.Profiles = append([]Fit{{profile.SunSpecName, "SunSpec device: " + found.About, true}}, id.Profiles...)
			}
			break
		}
		data, err := read(modbus.Request{Unit: unit, Function: modbus.ReadHoldingRegisters, Addr: addr, Count: count})
		if given(err) {
			return id, err
		}
		walk.Answer(data, err)
	}
	return id, nil
}

// maxSilent is how many questions a unit may leave without an answer in a row.
const maxSilent = 3
