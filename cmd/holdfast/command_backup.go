package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"holdfast/storeforward"
)

func backupCommand() *cobra.Command {
	var p place
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the store into FILE, while the gateway runs or not",
		Long: `Copy the store into FILE: one moment of it, checked, and on the disk when the
command ends. Until then FILE is what it was.

To restore, stop the gateway, put the file in the place of holdfast.db (with no
holdfast.db-wal or -shm beside it) and start again. It has an identity of its
own there: clouds start their sessions afresh, and messages in flight at the
time of the copy can arrive twice.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := p.resolve(c.Context())
			if err != nil {
				return err
			}
			last := time.Now()
			err = storeforward.Backup(c.Context(), r.path, args[0], func(done, total int) {
				if now := time.Now(); now.Sub(last) >= time.Second {
					last = now
					fmt.Fprintf(c.ErrOrStderr(), "%d of %d pages copied ...\n", done, total)
				}
			})
			if err != nil {
				return err
			}
			info, err := os.Stat(args[0])
			if err != nil {
				return err
			}
			if p.json {
				return printJSON(c.OutOrStdout(), map[string]any{"file": args[0], "bytes": info.Size(), "of": r.path})
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d bytes, checked\n", args[0], info.Size())
			return err
		},
	}
	p.flags(c)
	return c
}
