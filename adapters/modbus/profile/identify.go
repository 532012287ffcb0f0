package profile

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"

	"holdfast/adapters/modbus"
	"holdfast/adapters/reading"
)

// Sign is something by which a device is recognised: a register with a certain
// content, or an object of its identification. Exactly one of Values, Text and
// Min with Max is given.
type Sign struct {
	// Register, Type, Length and Order say what to read, as of a point; Order
	// empty means the profile's.
	Register string `toml:"register" json:"register,omitempty"`
	Type     string `toml:"type" json:"type,omitempty"`
	Length   int    `toml:"length" json:"length,omitempty"`
	Order    string `toml:"order" json:"order,omitempty"`
	// Object is an object of the device's identification instead, 0 the maker,
	// 1 the product code (MODBUS Application Protocol V1.1b3 §6.21).
	Object *int `toml:"object" json:"object,omitempty"`
	// Values are the numbers that the register may have, Text patterns of
	// texts ("B23*").
	Values []int64  `toml:"values" json:"values,omitempty"`
	Text   []string `toml:"text" json:"text,omitempty"`
	// Min and Max bound a number that other devices may have too: a voltage. It
	// makes the device likely, not certain.
	Min *float64 `toml:"min" json:"min,omitempty"`
	Max *float64 `toml:"max" json:"max,omitempty"`
}

// Question is what to ask a device to recognise it: registers to be read, or an
// object of its identification when Count is 0.
type Question struct {
	Register modbus.Register
	Count    int
	Object   int
}

// Identification is what a device answered. What it refused is left out.
type Identification struct {
	// Registers are the contents of the registers asked for, as on the wire.
	Registers map[Question][]byte
	// Objects are those of its identification (function 43/14).
	Objects map[int]string
}

// Found is a profile that fits a device. Certain says that the device says so
// itself; otherwise its values are only such as this device could have.
type Found struct {
	Profile *Profile
	Certain bool
	signs   int
}

func (s *Sign) point() modbus.Point {
	return modbus.Point{Name: "sign", Register: s.Register, Type: s.Type, Length: s.Length}
}

func (s *Sign) validate(order string) error {
	kinds := 0
	for _, has := range []bool{s.Values != nil, s.Text != nil, s.Min != nil && s.Max != nil} {
		if has {
			kinds++
		}
	}
	if kinds != 1 || (s.Min != nil) != (s.Max != nil) {
		return errors.New("register: needs one of values, text, or min and max")
	}
	for _, t := range s.Text {
		if _, err := path.Match(t, ""); err != nil {
			return fmt.Errorf("text: %q is no pattern such as \"B23*\"", t)
		}
	}
	if s.Object != nil {
		if *s.Object < 0 || *s.Object > 255 || s.Register != "" || s.Text == nil {
			return errors.New("object: wants 0..255, text, and no register")
		}
		return nil
	}
	if _, err := s.question(order); err != nil {
		return err
	}
	if (s.Type == "string") != (s.Text != nil) {
		return errors.New("type: text is compared with a string, numbers with a number")
	}
	return nil
}

// question is what to ask; the error names the key.
func (s *Sign) question(order string) (Question, error) {
	if s.Object != nil {
		return Question{Object: *s.Object}, nil
	}
	r, n, err := modbus.Extent(s.point(), cmp.Or(s.Order, order))
	return Question{Register: r, Count: n}, err
}

// fits says whether the answer is what the sign wants.
func (s *Sign) fits(order string, id Identification) bool {
	if s.Object != nil {
		text, ok := id.Objects[*s.Object]
		return ok && anyMatch(s.Text, text)
	}
	q, err := s.question(order)
	data, ok := id.Registers[q]
	if err != nil || !ok {
		return false
	}
	value, _, err := modbus.Decode(s.point(), cmp.Or(s.Order, order), data)
	if err != nil {
		return false
	}
	if text, ok := value.(string); ok {
		return anyMatch(s.Text, text)
	}
	n, ok := reading.Number(value)
	if s.Min != nil {
		return ok && n >= *s.Min && n <= *s.Max
	}
	return ok && slices.ContainsFunc(s.Values, func(v int64) bool { return float64(v) == n })
}

func anyMatch(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, text)
		return ok && err == nil
	})
}

// Questions lists what to ask a device to recognise it as one of these, each
// once.
func Questions(profiles []*Profile) []Question {
	var all []Question
	for _, p := range profiles {
		for i := range p.Identify {
			q, err := p.Identify[i].question(p.Order)
			if err == nil && !slices.Contains(all, q) {
				all = append(all, q)
			}
		}
	}
	return all
}

// Match returns the profiles that fit the answers, the best first: certain ones
// before likely ones, and among those the ones with more signs.
func Match(profiles []*Profile, id Identification) []Found {
	var found []Found
	for _, p := range profiles {
		f := Found{Profile: p, Certain: false, signs: len(p.Identify)}
		if f.signs == 0 || slices.ContainsFunc(p.Identify, func(s Sign) bool { return !s.fits(p.Order, id) }) {
			continue
		}
		f.Certain = slices.ContainsFunc(p.Identify, func(s Sign) bool { return s.Min == nil })
		found = append(found, f)
	}
	slices.SortStableFunc(found, func(a, b Found) int {
		if a.Certain != b.Certain {
			if a.Certain {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.signs, a.signs)
	})
	return found
}
