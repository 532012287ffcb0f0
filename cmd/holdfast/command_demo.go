package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/cmd/holdfast/demo"
)

func demoCommand() *cobra.Command {
	var opts demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch nothing get lost: a meter, a sensor, a gateway and a cloud on this machine",
		Long: `Run the main job on this machine, in about a minute: a Modbus meter and a
line-based sensor on pseudo-terminals, a gateway, a link that is cut twice, a
gateway that is killed, and a subscriber at the cloud that checks every reading.

The exit code is 0 only if nothing acknowledged was lost, QoS 2 came exactly
once and order held.`,
		Example: `  holdfast demo
  holdfast demo --cloud mqtt://localhost:1883`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			binary, err := os.Executable()
			if err != nil {
				return fmt.Errorf("own binary: %w", err)
			}
			opts.Binary, opts.Out = binary, c.OutOrStdout()
			opts.Colour = isTerminal(opts.Out) && os.Getenv("NO_COLOR") == ""
			return demo.Run(c.Context(), opts)
		},
	}
	c.Flags().StringVar(&opts.Cloud, "cloud", "", "use this broker as the cloud: mqtt://host:1883 or mqtts://host:8883")
	c.Flags().BoolVar(&opts.Keep, "keep", false, "keep the files and logs, and say where")
	return c
}

// isTerminal says whether somebody may be looking.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
