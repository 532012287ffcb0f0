package serial

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"holdfast/adapters/reading"
)

// Poll is a question that the device is asked again and again. A device with
// polls is heard only when it has been asked.
type Poll struct {
	// Name of the poll; points name it.
	Name string `toml:"name"`
	// Request is what is sent: bytes, ${hex:0D0A} and ${check} among text.
	Request string `toml:"request"`
	// Every is how often it is asked, 50ms to 24h; 0 means 10s.
	Every time.Duration `toml:"every"`
	// Timeout is how long the answer may take, from the end of the request to
	// the end of the answer, 10ms to 5m; 0 means 1s. After one that does not
	// come the device is left alone twice as long.
	Timeout time.Duration `toml:"timeout"`
	// With framing "iec62056" it is how long the meter may be silent, and 0
	// means 3s.
	// Answer matches the frames that are answers to it (RE2); others are
	// thrown away. Empty: any frame is one.
	Answer string `toml:"answer"`
	// Pattern takes the place of the device's. Format "regexp".
	Pattern string `toml:"pattern"`
}

// Command is something the device can be told, by a message on the topic
// prefix/device/name/set.
type Command struct {
	// Name of the command.
	Name string `toml:"name"`
	// Request is what is sent: as that of a Poll, and with ${value} and
	// ${value:VERB}, the payload of the message.
	Request string `toml:"request"`
	// Type of the value: "number", "text", "bool"; "none" without ${value},
	// which is then the default, as "text" is otherwise.
	Type string `toml:"type"`
	// Min and Max bound a number; nil for no bound.
	Min *float64 `toml:"min"`
	Max *float64 `toml:"max"`
	// Allow is what a text must match, all of it (RE2). Empty: any printable
	// ASCII.
	Allow string `toml:"allow"`
	// MaxLength of a text, in bytes, 1 to 255; 0 means 64.
	MaxLength int `toml:"max_length"`
	// On and Off are what a bool is sent as; empty means "1" and "0".
	On  string `toml:"on"`
	Off string `toml:"off"`
	// Answer matches the frame by which the device confirms (RE2), Refused
	// the one by which it does not. Both empty: none is awaited, and nothing
	// else is sent for the timeout.
	Answer  string `toml:"answer"`
	Refused string `toml:"refused"`
	// Timeout is how long that may take, as with a Poll.
	Timeout time.Duration `toml:"timeout"`
	// MaxAge is how long a command may have been on its way or waiting before
	// it is refused, 100ms to 1h; 0 means 10s.
	MaxAge time.Duration `toml:"max_age"`
}

const (
	defaultEvery   = 10 * time.Second
	defaultTimeout = time.Second
	defaultMaxAge  = 10 * time.Second
	defaultText    = 64
)

// poll is a Poll made ready.
type poll struct {
	Poll
	request []byte
	answer  *regexp.Regexp // nil: any
	dec     *decoder

	due time.Time // of Run's goroutine
}

// command is a Command made ready.
type command struct {
	Command
	template        *template
	rule            valueRule
	answer, refused *regexp.Regexp // nil: none
}

// conversation is what is said to a device.
type conversation struct {
	polls    []*poll
	commands map[string]*command // by name
}

func within(key string, d *time.Duration, def, least, most time.Duration) error {
	if *d == 0 {
		*d = def
	}
	if *d < least || *d > most {
		return fmt.Errorf("%s: %v is outside %v..%v", key, *d, least, most)
	}
	return nil
}

// optional compiles a pattern that may be left out.
func optional(key, pattern string) (*regexp.Regexp, error) {
	if pattern == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return re, nil
}

// newConversation checks the polls and commands, and returns them. There are
// neither with a device that only talks.
func newConversation(device string, o *Options, c *check) (conversation, error) {
	conv := conversation{commands: map[string]*command{}}
	seen := map[string]bool{}
	for i, p := range o.Polls {
		ready, err := newPoll(device, o, p, c)
		if err == nil && seen[p.Name] {
			err = fmt.Errorf("name: %q is there twice", p.Name)
		}
		if err != nil {
			return conv, fmt.Errorf("poll[%d].%w", i, err)
		}
		seen[p.Name] = true
		conv.polls = append(conv.polls, ready)
	}
	for i, p := range o.Points {
		if p.Poll != "" && !seen[p.Poll] {
			return conv, fmt.Errorf("point[%d].poll: there is no poll %q", i, p.Poll)
		}
	}
	for i, cmd := range o.Commands {
		ready, err := newCommand(o, cmd, c)
		if err == nil && conv.commands[cmd.Name] != nil {
			err = fmt.Errorf("name: %q is there twice", cmd.Name)
		}
		if err != nil {
			return conv, fmt.Errorf("command[%d].%w", i, err)
		}
		conv.commands[cmd.Name] = ready
	}
	return conv, nil
}

func newPoll(device string, o *Options, p Poll, c *check) (*poll, error) {
	if err := reading.ValidName(p.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	t, err := parseTemplate("request", p.Request, c, o.CheckFrom)
	if err != nil {
		return nil, err
	}
	if has, _ := t.valued(); has {
		return nil, errors.New("request: ${value} is for commands")
	}
	if err := within("every", &p.Every, defaultEvery, 50*time.Millisecond, 24*time.Hour); err != nil {
		return nil, err
	}
	timeout := defaultTimeout
	if o.Framing == FramingIEC62056 {
		timeout = defaultSilence
	}
	if err := within("timeout", &p.Timeout, timeout, 10*time.Millisecond, 5*time.Minute); err != nil {
		return nil, err
	}
	ready := &poll{Poll: p}
	if ready.request, err = t.append(nil, "", 0); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if ready.answer, err = optional("answer", p.Answer); err != nil {
		return nil, err
	}
	own := *o
	own.Points = nil
	for _, pt := range o.Points {
		if pt.Poll == "" || pt.Poll == p.Name {
			own.Points = append(own.Points, pt)
		}
	}
	if p.Pattern != "" {
		if o.Format != FormatRegexp {
			return nil, fmt.Errorf("pattern: has no use with format %q", o.Format)
		}
		own.Pattern = p.Pattern
	}
	if len(own.Points) == 0 {
		return nil, errors.New("name: no point is for this poll")
	}
	if ready.dec, err = newDecoder(device, &own); err != nil {
		return nil, fmt.Errorf("name: its points and pattern: %w", err)
	}
	return ready, nil
}

func newCommand(o *Options, cmd Command, c *check) (*command, error) {
	if err := reading.ValidName(cmd.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	t, err := parseTemplate("request", cmd.Request, c, o.CheckFrom)
	if err != nil {
		return nil, err
	}
	has, number := t.valued()
	if cmd.Type == "" {
		switch {
		case !has:
			cmd.Type = TypeNone
		case number:
			cmd.Type = TypeNumber
		default:
			cmd.Type = TypeText
		}
	}
	switch cmd.Type {
	case TypeNumber, TypeText, TypeBool, TypeNone:
	default:
		return nil, fmt.Errorf(`type: %q is none of "number", "text", "bool", "none"`, cmd.Type)
	}
	switch {
	case has == (cmd.Type == TypeNone):
		return nil, fmt.Errorf("type: %q does not go with this request", cmd.Type)
	case number && cmd.Type == TypeText:
		return nil, errors.New("type: this request needs a number")
	case cmd.Type != TypeNumber && (cmd.Min != nil || cmd.Max != nil):
		return nil, fmt.Errorf("min: min and max have no use with type %q", cmd.Type)
	case cmd.Type != TypeText && cmd.Allow != "":
		return nil, fmt.Errorf("allow: has no use with type %q", cmd.Type)
	case cmd.Type != TypeBool && (cmd.On != "" || cmd.Off != ""):
		return nil, fmt.Errorf("on: on and off have no use with type %q", cmd.Type)
	case cmd.MaxLength < 0 || cmd.MaxLength > 255:
		return nil, fmt.Errorf("max_length: %d is outside 0..255", cmd.MaxLength)
	}
	if err := within("timeout", &cmd.Timeout, defaultTimeout, 10*time.Millisecond, 5*time.Minute); err != nil {
		return nil, err
	}
	if err := within("max_age", &cmd.MaxAge, defaultMaxAge, 100*time.Millisecond, time.Hour); err != nil {
		return nil, err
	}
	ready := &command{Command: cmd, template: t, rule: valueRule{
		typ: cmd.Type, min: math.Inf(-1), max: math.Inf(1), maxLen: cmd.MaxLength, on: cmd.On, off: cmd.Off,
	}}
	r := &ready.rule
	for key, bound := range map[string]struct{ given, use *float64 }{"min": {cmd.Min, &r.min}, "max": {cmd.Max, &r.max}} {
		if bound.given == nil {
			continue
		}
		if *bound.use = *bound.given; math.IsNaN(*bound.use) || math.IsInf(*bound.use, 0) {
			return nil, fmt.Errorf("%s: %v is no number", key, *bound.use)
		}
	}
	if r.min > r.max {
		return nil, fmt.Errorf("max: %v is less than min", r.max)
	}
	if r.maxLen == 0 {
		r.maxLen = defaultText
	}
	if r.on == "" && r.off == "" {
		r.on, r.off = "1", "0"
	}
	if cmd.Allow != "" {
		if r.allow, err = regexp.Compile(`\A(?:` + cmd.Allow + `)\z`); err != nil {
			return nil, fmt.Errorf("allow: %w", err)
		}
	}
	if ready.answer, err = optional("answer", cmd.Answer); err != nil {
		return nil, err
	}
	if ready.refused, err = optional("refused", cmd.Refused); err != nil {
		return nil, err
	}
	return ready, nil
}

// topic is where the command is heard.
func (o *Options) topic(device, command string) string {
	return strings.Join([]string{o.TopicPrefix, device, command, "set"}, "/")
}
