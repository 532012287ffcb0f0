package modbus

import (
	"strings"
	"testing"
	"time"
)

func boiler() Device {
	d := DefaultDevice()
	d.Name, d.Unit = "boiler", 1
	d.Points = []Point{
		{Name: "flow", Register: "holding:100", Type: "float32", Order: "CDAB"},
		{Name: "level", Register: "input:0x1e"},
	}
	return d
}

func TestDefaultsAreValid(t *testing.T) {
	o := DefaultOptions()
	o.Devices = []Device{boiler(), {Name: "bare", Unit: 2, Every: time.Second, Points: []Point{{Name: "p", Register: "coil:0"}}}}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	// What is left out means the same as the defaults spelled out.
	bare, err := compile(&o.Devices[1])
	if err != nil {
		t.Fatal(err)
	}
	d := DefaultDevice()
	if bare.timeout != d.Timeout || bare.maxGap != *d.MaxGap || bare.maxRegs != d.MaxRegisters ||
		bare.maxBits != d.MaxBits || bare.retries != *d.Retries || int(bare.qos) != *d.QoS {
		t.Errorf("compiled defaults %+v differ from DefaultDevice() %+v", bare, d)
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	tests := map[string]struct {
		change func(*Options, *Device)
		want   string
	}{
		"unit 0":              {func(_ *Options, d *Device) { d.Unit = 0 }, "device.boiler.unit: 0 is outside 1..247"},
		"unit 248":            {func(_ *Options, d *Device) { d.Unit = 248 }, "device.boiler.unit: 248 is outside 1..247"},
		"unit 257":            {func(_ *Options, d *Device) { d.Unit = 257 }, "device.boiler.unit: 257 is outside"},
		"every":               {func(_ *Options, d *Device) { d.Every = 0 }, "device.boiler.every: 0s is outside 10ms..24h"},
		"timeout":             {func(_ *Options, d *Device) { d.Timeout = time.Hour }, "device.boiler.timeout: 1h0m0s is outside"},
		"pause":               {func(_ *Options, d *Device) { d.Pause = -1 }, "device.boiler.pause: "},
		"retries":             {func(_ *Options, d *Device) { d.Retries = new(11) }, "device.boiler.retries: 11 is outside 0..10"},
		"max_gap":             {func(_ *Options, d *Device) { d.MaxGap = new(-1) }, "device.boiler.max_gap: -1 is outside"},
		"max_registers":       {func(_ *Options, d *Device) { d.MaxRegisters = 126 }, "device.boiler.max_registers: 126 is outside 4..125"},
		"max_bits":            {func(_ *Options, d *Device) { d.MaxBits = 2001 }, "device.boiler.max_bits: 2001 is outside 1..2000"},
		"qos":                 {func(_ *Options, d *Device) { d.QoS = new(3) }, "device.boiler.qos: 3 is outside 0..2"},
		"order of the device": {func(_ *Options, d *Device) { d.Order = "ACBD" }, `device.boiler.order: "ACBD" is none of`},
		"no points":           {func(_ *Options, d *Device) { d.Points = nil }, "device.boiler.point: there is no point to read"},
		"device name":         {func(_ *Options, d *Device) { d.Name = "a/b" }, "device: the name"},
		"hole":                {func(_ *Options, d *Device) { d.Holes = []string{"holding:5-4"} }, "device.boiler.holes[0]: "},
		"hole of a bit":       {func(_ *Options, d *Device) { d.Holes = []string{"holding:5.1"} }, "device.boiler.holes[0]: "},
		"point in a hole":     {func(_ *Options, d *Device) { d.Holes = []string{"holding:101-102"} }, "device.boiler.point[0].register: holding:100 lies in a hole"},
		"point name":          {func(_ *Options, d *Device) { d.Points[1].Name = "" }, "device.boiler.point[1].name: is empty"},
		"same point name":     {func(_ *Options, d *Device) { d.Points[1].Name = "flow" }, `device.boiler.point[1].name: "flow" is taken`},
		"register":            {func(_ *Options, d *Device) { d.Points[1].Register = "100" }, `device.boiler.point[1].register: "100": want TABLE:ADDRESS`},
		"table":               {func(_ *Options, d *Device) { d.Points[1].Register = "hodling:1" }, `device.boiler.point[1].register: "hodling:1": there is no table "hodling"`},
		"address":             {func(_ *Options, d *Device) { d.Points[1].Register = "input:65536" }, `device.boiler.point[1].register: "input:65536": "65536" is not an address`},
		"negative address":    {func(_ *Options, d *Device) { d.Points[1].Register = "input:-1" }, `device.boiler.point[1].register: `},
		"bit 16":              {func(_ *Options, d *Device) { d.Points[1].Register = "input:0.16" }, `device.boiler.point[1].register: "input:0.16": "16" is not a bit`},
		"bit of a coil":       {func(_ *Options, d *Device) { d.Points[1].Register = "coil:0.1" }, `device.boiler.point[1].register: `},
		"past the end":        {func(_ *Options, d *Device) { d.Points[0].Register = "holding:65535" }, `device.boiler.point[0].register: holding:65535 and 1 more go past 65535`},
		"type":                {func(_ *Options, d *Device) { d.Points[0].Type = "float" }, `device.boiler.point[0].type: "float" is none of bool, int8`},
		"type of a coil":      {func(_ *Options, d *Device) { d.Points[1] = Point{Name: "c", Register: "coil:1", Type: "int16"} }, `device.boiler.point[1].type: "int16" cannot be read from the single bit coil:1`},
		"order":               {func(_ *Options, d *Device) { d.Points[0].Order = "AB" }, `device.boiler.point[0].order: "AB" is no order of 4 bytes, want ABCD, DCBA, BADC or CDAB`},
		"order of 16 bits":    {func(_ *Options, d *Device) { d.Points[1].Order = "CDAB" }, `device.boiler.point[1].order: "CDAB" is no order of 2 bytes, want AB or BA`},
		"length of a number":  {func(_ *Options, d *Device) { d.Points[0].Length = 2 }, `device.boiler.point[0].length: only a string has one`},
		"string of nothing":   {func(_ *Options, d *Device) { d.Points[1].Type = "string" }, `device.boiler.point[1].length: 0 is outside 1..125 registers`},
		"scale of a bool":     {func(_ *Options, d *Device) { d.Points[1] = Point{Name: "c", Register: "coil:1", Scale: 2} }, `device.boiler.point[1].type: a bool has no scale`},
		"decimals":            {func(_ *Options, d *Device) { d.Points[0].Decimals = new(16) }, `device.boiler.point[0].decimals: 16 is outside 0..15`},
		"invalid too wide":    {func(_ *Options, d *Device) { d.Points[1].Invalid = []int64{0, 0x10000} }, `device.boiler.point[1].invalid[1]: 65536 does not fit into 16 bits`},
		"invalid of a bit":    {func(_ *Options, d *Device) { d.Points[1] = Point{Name: "c", Register: "coil:1", Invalid: []int64{1}} }, `device.boiler.point[1].invalid: `},
		"every of a point":    {func(_ *Options, d *Device) { d.Points[1].Every = time.Millisecond }, `device.boiler.point[1].every: 1ms is outside 10ms..24h`},
		"bits":                {func(_ *Options, d *Device) { d.Points[1].Bits = "7-4" }, `device.boiler.point[1].bits: "7-4" is no such thing as "4-7" or "12", within 0..15`},
		"bits beyond":         {func(_ *Options, d *Device) { d.Points[1].Bits = "16" }, `device.boiler.point[1].bits: "16" is no such thing`},
		"bits of a float":     {func(_ *Options, d *Device) { d.Points[0].Bits = "0" }, `device.boiler.point[0].bits: only an unsigned number has bits to take, not a float32`},
		"bits of a bit":       {func(_ *Options, d *Device) { d.Points[1] = Point{Name: "c", Register: "holding:0.1", Bits: "0"} }, `device.boiler.point[1].bits: only an unsigned number`},
		"enum of a float":     {func(_ *Options, d *Device) { d.Points[0].Enum = map[string]string{"0": "off"} }, `device.boiler.point[0].enum: only an integer or bool has names, not a float32`},
		"enum scaled":         {func(_ *Options, d *Device) { d.Points[1].Enum, d.Points[1].Scale = map[string]string{"0": "off"}, 2 }, `device.boiler.point[1].enum: a number with names has no scale`},
		"enum of a word":      {func(_ *Options, d *Device) { d.Points[1].Enum = map[string]string{"off": "off"} }, `device.boiler.point[1].enum: "off" is not a number within 0..65535`},
		"enum out of range":   {func(_ *Options, d *Device) { d.Points[1].Enum = map[string]string{"65536": "off"} }, `device.boiler.point[1].enum: "65536" is not a number within 0..65535`},
		"enum of few bits":    {func(_ *Options, d *Device) { d.Points[1].Bits, d.Points[1].Enum = "0-1", map[string]string{"4": "off"} }, `device.boiler.point[1].enum: "4" is not a number within 0..3`},
		"enum twice":          {func(_ *Options, d *Device) { d.Points[1].Enum = map[string]string{"1": "a", "0x1": "b"} }, `device.boiler.point[1].enum: "1" is there twice`},
		"report":              {func(_ *Options, d *Device) { d.Points[1].Report.Report = "never" }, `device.boiler.point[1].report: "never" is not one of`},
		"deadband of an enum": {func(_ *Options, d *Device) { d.Points[1].Enum, d.Points[1].Deadband = map[string]string{"0": "off"}, 1 }, `device.boiler.point[1].deadband: only a number has one`},
		"silence":             {func(o *Options, _ *Device) { o.Silence = time.Minute }, "silence: 1m0s is outside 0s..1s"},
		"change pause":        {func(o *Options, _ *Device) { o.ChangePause = -1 }, "change_pause: "},
		"warm-up":             {func(o *Options, _ *Device) { o.WarmUp = -1 }, "warm_up: "},
		"prefix":              {func(o *Options, _ *Device) { o.Prefix = "a/#" }, "prefix: "},
		"same device name":    {func(o *Options, d *Device) { o.Devices = append(o.Devices, *d) }, "device.boiler: this name is taken"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := DefaultOptions()
			d := boiler()
			tt.change(&o, &d)
			o.Devices = append(o.Devices, d)
			err := o.Validate()
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Validate() = %v, want %s...", err, tt.want)
			}
		})
	}
}

func TestRegisterReferences(t *testing.T) {
	for _, s := range []string{"holding:0", "input:65535", "coil:1", "discrete:2", "holding:100.15"} {
		r, err := ParseRegister(s)
		if err != nil {
			t.Errorf("ParseRegister(%q) = %v", s, err)
		} else if r.String() != s {
			t.Errorf("ParseRegister(%q) prints as %q", s, r)
		}
	}
	r, err := ParseRegister("holding:0x1F")
	if err != nil || r.Addr != 31 {
		t.Errorf("ParseRegister(holding:0x1F) = %v, %v, want address 31", r, err)
	}
}

func FuzzParseRegister(f *testing.F) {
	f.Add("holding:100.3")
	f.Add("coil:0x0")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRegister(s)
		if err != nil {
			return
		}
		if back, err := ParseRegister(r.String()); err != nil || back != r {
			t.Errorf("%q = %v, which reads as %v, %v", s, r, back, err)
		}
	})
}
