package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/mosquitto"
)

func importCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import MOSQUITTO.CONF",
		Short: "Print the configuration that is equal to a mosquitto.conf",
		Long: `Print the configuration that is equal to a mosquitto.conf: listeners,
certificates, users and ACL, bounds, and bridges as uplinks with their routes.
What has no equal is named on standard error, with its line, and in comments at
the end. The password and the ACL file are used as they are.`,
		Example: `  holdfast import /etc/mosquitto/mosquitto.conf > /etc/holdfast/holdfast.toml
  holdfast check`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := readConf(args[0])
			if err != nil {
				return err
			}
			text, notes := mosquitto.Convert(string(data))
			var out bytes.Buffer
			fmt.Fprintf(&out, "# From %q by `holdfast import`; check it with `holdfast check`.\n\n%s", args[0], text)
			if len(notes) > 0 {
				fmt.Fprintf(&out, "\n# Without an equal, or not quite the same:\n")
			}
			for _, n := range notes {
				fmt.Fprintf(&out, "# %s\n", n)
				fmt.Fprintf(c.ErrOrStderr(), "%s:%s\n", args[0], n)
			}
			_, err = out.WriteTo(c.OutOrStdout())
			return err
		},
	}
}

// maxConf bounds a mosquitto.conf, in bytes.
const maxConf = 1 << 20

func readConf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was read only
	data, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(data) > maxConf {
		err = fmt.Errorf("%s: is larger than %d bytes", path, maxConf)
	}
	return data, err
}
