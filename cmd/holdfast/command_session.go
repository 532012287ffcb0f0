package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/broker"
	"holdfast/broker/durable"
	"holdfast/cmd/holdfast/console"
)

func sessionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "session",
		Short: "Look at the sessions of the clients, and end one",
		Long: `Look at the sessions of the clients of a running gateway, and end one: that of a
device that is gone for good, or of a user who is and whose client id another is to
have.

Exit codes: 0 done, 1 it did not work, 5 no gateway runs.`,
	}
	c.AddCommand(sessionList(), sessionEnd())
	return c
}

func sessionList() *cobra.Command {
	var p place
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sessions, those of clients that are away too",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := p.live(c.Context())
			if err != nil {
				return err
			}
			var list []broker.SessionInfo
			if err := console.Stream(c.Context(), r.socket, "GET", "/api/v1/sessions", nil, func(line []byte) error {
				return json.Unmarshal(line, &list)
			}); err != nil {
				return err
			}
			slices.SortFunc(list, func(a, b broker.SessionInfo) int { return strings.Compare(a.ClientID, b.ClientID) })
			if p.json {
				return printJSON(c.OutOrStdout(), list)
			}
			t := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(t, "client id\tuser\tconnection\tsubscriptions\tends")
			now := time.Now()
			for _, s := range list {
				connection := "away"
				if !s.Since.IsZero() {
					connection = s.Remote + " for " + since(now, s.Since)
				}
				tell(t, "%s\t%s\t%s\t%d\t%s\n", s.ClientID, s.User, connection, s.Subscriptions, sessionEnds(&s, now))
			}
			return t.Flush()
		},
	}
	p.flags(c)
	return c
}

// sessionEnds says when a session ends by itself.
func sessionEnds(s *broker.SessionInfo, now time.Time) string {
	switch {
	case s.Expiry == durable.SessionExpiryNever:
		return "never"
	case s.Expiry == 0:
		return "with its connection"
	case s.Expires.IsZero():
		return seconds(float64(s.Expiry)) + " after its connection"
	default:
		return "in " + since(s.Expires, now)
	}
}

func sessionEnd() *cobra.Command {
	var p place
	c := &cobra.Command{
		Use:   "end CLIENT_ID",
		Short: "End a session, with what waits for it",
		Long: `End the session of a client: its subscriptions, and the messages that wait for it,
are gone when this returns; see 'holdfast queue export'. A client that is connected
is disconnected first, and may come back with a new session. Its will is published
at once, as at the end of any session.`,
		Example: `  holdfast session end old-panel`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := p.live(c.Context())
			if err != nil {
				return err
			}
			var ended struct {
				ClientID string `json:"client_id"`
			}
			q := url.Values{"client_id": {args[0]}}
			if err := console.Stream(c.Context(), r.socket, "POST", "/api/v1/sessions/end?"+q.Encode(), nil, func(line []byte) error {
				return json.Unmarshal(line, &ended)
			}); err != nil {
				return err
			}
			if p.json {
				return printJSON(c.OutOrStdout(), map[string]string{"ended": ended.ClientID})
			}
			tell(c.OutOrStdout(), "session %s ended\n", ended.ClientID)
			return nil
		},
	}
	p.flags(c)
	return c
}
