package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/config"
)

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file and its drop-ins; every problem names file, line and key",
		Example: `  holdfast check
  holdfast check ./holdfast.toml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			file := config.DefaultFile
			if len(args) == 1 {
				file = args[0]
			}
			cfg, err := config.Load(file)
			if err != nil {
				return &exitError{exitConfig, err}
			}
			rules, err := cfg.AccessRules()
			if err != nil {
				return &exitError{exitConfig, err}
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: ok: gateway %s, %d listeners, %d uplinks, %d ports, %d devices\n",
				file, cfg.Gateway.ID, len(cfg.Listeners), len(cfg.Uplinks), len(cfg.Ports), len(cfg.Devices))
			for _, w := range append(cfg.Warnings(), rules.Warnings()...) {
				fmt.Fprintln(c.OutOrStdout(), "warning: "+w)
			}
			return nil
		},
	}
}
