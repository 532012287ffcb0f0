package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"holdfast/adapters/modbus"
	"holdfast/adapters/modbus/survey"
)

type readOptions struct {
	modbusFlags
	unit  int
	all   bool
	typ   string
	order string
}

func modbusRead() *cobra.Command {
	var o readOptions
	c := &cobra.Command{
		Use:   "read TARGET REGISTER [COUNT]",
		Short: "Read registers, and show what they could mean",
		Long: `Read registers, and show what they could mean.

Each register is shown in hexadecimal, as a number with and without sign, in bits
and as text; with --all also together with those behind it as 32 and 64 bit numbers
in every order of bytes, and as BCD. --type reads COUNT values of one type instead,
which is how a point of a device is found out: bool, int8, uint8, int16, uint16,
int32, uint32, int64, uint64, float16, float32, float64, bcd16, bcd32, bcd64 or
string, whose COUNT is its registers. An exception is explained.`,
		Example: `  holdfast modbus read /dev/ttyUSB0 --unit 1 holding:0 10 --all
  holdfast modbus read tcp://192.168.1.50 --unit 1 input:0x1e 3 --type float32 --order CDAB
  holdfast modbus read rs485 --unit 17 coil:0 16`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(c *cobra.Command, args []string) error {
			count := 1
			if len(args) == 3 {
				n, err := strconv.Atoi(args[2])
				if err != nil {
					return &exitError{exitUsage, fmt.Errorf("COUNT: %q is not a number", args[2])}
				}
				count = n
			}
			return o.read(c, args[0], args[1], count)
		},
	}
	o.flags(c)
	c.Flags().IntVar(&o.unit, "unit", 1, "unit number (slave address)")
	c.Flags().BoolVar(&o.all, "all", false, "every type in every order")
	c.Flags().StringVar(&o.typ, "type", "", "read values of this type only")
	c.Flags().StringVar(&o.order, "order", "", "byte order of --type: AB, BA, ABCD, CDAB, ...")
	return c
}

func (o *readOptions) read(c *cobra.Command, target, register string, count int) error {
	at, err := modbus.ParseRegister(register)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	each := 1
	if o.typ != "" || at.Bit >= 0 {
		p := o.point(at, count)
		if _, each, err = modbus.Extent(p, ""); err != nil {
			return &exitError{exitUsage, err}
		}
		if o.typ == "string" {
			count = 1
		}
	}
	most := modbus.MaxReadRegisters
	if at.Table.Bits() {
		most = modbus.MaxReadBits
	}
	if n := count * each; n < 1 || n > most || int(at.Addr)+n > 1<<16 {
		return &exitError{exitUsage, fmt.Errorf("COUNT: %d is outside 1..%d, or goes past address 65535", count, most/each)}
	}
	var data []byte
	err = o.withLine(c, target, o.unit, func(ctx context.Context, a *asker) error {
		r := modbus.Request{Unit: byte(o.unit), Function: at.Table.Read(), Addr: at.Addr, Count: uint16(count * each)}
		data, err = a.do(ctx, r, o.timeout)
		return explained(err)
	})
	if err != nil {
		return err
	}
	var values []survey.Value
	switch {
	case at.Table.Bits():
		values = bitValues(at, data, count)
	case o.typ != "" || at.Bit >= 0:
		if values, err = o.typed(at, data, count, each); err != nil {
			return err
		}
	case o.json:
		values = survey.Values(at, data)
	default:
		return showRegisters(c.OutOrStdout(), at, data, o.all)
	}
	if o.json {
		return printJSON(c.OutOrStdout(), values)
	}
	t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
	for _, v := range values {
		tell(t, "%s\t%s\n", v.Register, shown(v.Value))
	}
	return t.Flush()
}

// point is what is read at a register.
func (o *readOptions) point(at modbus.Register, count int) modbus.Point {
	p := modbus.Point{Name: "value", Register: at.String(), Type: o.typ, Order: o.order}
	if o.typ == "string" {
		p.Length = count
	}
	return p
}

// typed decodes values that stand one behind the other.
func (o *readOptions) typed(at modbus.Register, data []byte, count, each int) ([]survey.Value, error) {
	values := []survey.Value{}
	for range count {
		v, _, err := modbus.Decode(o.point(at, each), "", data[:2*each])
		if err != nil {
			return nil, err
		}
		typ := o.typ
		if typ == "" {
			typ = "bool"
		}
		values = append(values, survey.Value{Register: at.String(), Type: typ, Order: o.order, Value: v})
		at.Addr, data = at.Addr+uint16(each), data[2*each:]
	}
	return values, nil
}

func bitValues(at modbus.Register, data []byte, count int) []survey.Value {
	values := []survey.Value{}
	for i := range count {
		values = append(values, survey.Value{Register: at.String(), Type: "bool", Value: data[i/8]>>(i%8)&1 != 0})
		at.Addr++
	}
	return values
}

// shown is a value for people.
func shown(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case float64:
		return strconv.FormatFloat(v, 'g', 9, 64)
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// showRegisters prints registers side by side.
func showRegisters(w io.Writer, at modbus.Register, data []byte, all bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	head := "register\thex\tuint16\tint16\tbinary\ttext"
	if all {
		head += "\tBA\tbcd16"
	}
	fmt.Fprintln(t, head)
	for i := 0; i < len(data); i += 2 {
		word := binary.BigEndian.Uint16(data[i:])
		r := at
		r.Addr += uint16(i / 2)
		bits := fmt.Sprintf("%016b", word)
		tell(t, "%s\t%04x\t%d\t%d\t%s\t%s", r.String(), word, word, int16(word), bits[:4]+" "+bits[4:8]+" "+bits[8:12]+" "+bits[12:], survey.ASCII(data[i:i+2]))
		if all {
			tell(t, "\t%d\t%s", word<<8|word>>8, shown(survey.At(r, data[i:], "bcd16", "", 1)))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil || !all {
		return err
	}
	for _, n := range []int{2, 4} {
		if len(data) < 2*n {
			break
		}
		tell(w, "\n")
		t = tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintf(t, "register\ttype\t%s\n", strings.Join(survey.Orders(n), "\t"))
		for i := 0; i+2*n <= len(data); i += 2 {
			r := at
			r.Addr += uint16(i / 2)
			for _, typ := range survey.Types[n] {
				tell(t, "%s\t%s", r.String(), typ)
				for _, order := range survey.Orders(n) {
					tell(t, "\t%s", shown(survey.At(r, data[i:], typ, order, n)))
				}
				fmt.Fprintln(t)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	tell(w, "\ntext  %s\n", survey.ASCII(data))
	return nil
}
