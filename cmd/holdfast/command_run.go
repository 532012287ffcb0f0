package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/config"
)

func runCommand() *cobra.Command {
	var file, data string
	var listen []string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway until SIGTERM; SIGHUP reads the configuration again",
		Example: `  holdfast run                                  # ` + config.DefaultFile + `
  holdfast run --config ./holdfast.toml
  holdfast run --listen tcp://127.0.0.1:1884 --data ./data   # without any file`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			load := func() (config.Config, error) { return loadConfig(file, data, listen) }
			cfg, err := load()
			if err != nil {
				return &exitError{exitConfig, err}
			}
			reload := make(chan os.Signal, 1) // one is enough: the file is read after it was taken out
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			return runGateway(c.Context(), cfg, load, reload, newLogger(c.ErrOrStderr(), cfg.Log))
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file (default "+config.DefaultFile+" unless --listen or --data is given)")
	c.Flags().StringVar(&data, "data", "", "folder of the store, instead of gateway.data")
	c.Flags().StringArrayVar(&listen, "listen", nil, "address of the local broker, instead of [[listener]]; may be repeated")
	return c
}

// loadConfig reads the file, if one is wanted, and lays the flags over it.
func loadConfig(file, data string, listen []string) (config.Config, error) {
	cfg := config.Default()
	switch {
	case file != "":
	case len(listen) == 0 && data == "":
		file = config.DefaultFile
	}
	if file != "" {
		var err error
		if cfg, err = config.Load(file); err != nil {
			return config.Config{}, err
		}
	}
	if err := cfg.Override(data, listen); err != nil {
		return config.Config{}, err
	}
	return cfg, nil
}

// newLogger logs to w. Under systemd the journal has the time already, and
// takes the priority from a prefix (sd-daemon(3)).
func newLogger(w io.Writer, opts config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(opts.Level)); err != nil {
		panic(fmt.Sprintf("log level %q passed validation", opts.Level))
	}
	hopts := &slog.HandlerOptions{Level: level}
	if opts.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, hopts))
	}
	if os.Getenv("JOURNAL_STREAM") != "" {
		return slog.New(newJournalHandler(w, hopts))
	}
	return slog.New(slog.NewTextHandler(w, hopts))
}
