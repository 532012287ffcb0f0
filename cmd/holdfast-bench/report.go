package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// report prints the medians, and each peer's ratio to the first.
func report(w io.Writer, peers []peer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "scenario\tpeer\tCPU s/M\tratio\tmsg/s\tratio\tp50\tp99\tp99.9\tRSS MB\tB/idle\t\n")
	var names []string
	for _, r := range results {
		if !slices.Contains(names, r.scenario) {
			names = append(names, r.scenario)
		}
	}
	for _, sc := range names {
		var first result
		for i, p := range peers {
			m := median(results, sc, p.name)
			if i == 0 {
				first = m
			}
			fmt.Fprintf(t, "%s\t%s\t", sc, p.name)
			if m.perIdle > 0 {
				fmt.Fprintf(t, "\t\t\t\t\t\t\t%.1f\t%.0f\t\n", mb(m.rss), m.perIdle)
				continue
			}
			fmt.Fprintf(t, "%.2f\t%s\t%.0f\t%s\t%v\t%v\t%v\t%.1f\t\t\n", m.cpuPerMillion, ratio(m.cpuPerMillion, first.cpuPerMillion),
				m.perSecond, ratio(m.perSecond, first.perSecond),
				m.p50.Round(time.Microsecond), m.p99.Round(time.Microsecond), m.p999.Round(time.Microsecond), mb(m.rss))
		}
	}
	return t.Flush()
}

func ratio(v, first float64) string {
	if first == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v/first)
}

// median takes each figure's median over the rounds.
func median(results []result, scenario, peer string) result {
	var rs []result
	for _, r := range results {
		if r.scenario == scenario && r.peer == peer {
			rs = append(rs, r)
		}
	}
	m := result{scenario: scenario, peer: peer}
	m.cpuPerMillion = mid(rs, func(r result) float64 { return r.cpuPerMillion })
	m.perSecond = mid(rs, func(r result) float64 { return r.perSecond })
	m.p50 = time.Duration(mid(rs, func(r result) float64 { return float64(r.p50) }))
	m.p99 = time.Duration(mid(rs, func(r result) float64 { return float64(r.p99) }))
	m.p999 = time.Duration(mid(rs, func(r result) float64 { return float64(r.p999) }))
	m.rss = int64(mid(rs, func(r result) float64 { return float64(r.rss) }))
	m.perIdle = mid(rs, func(r result) float64 { return r.perIdle })
	return m
}

func mid(rs []result, of func(result) float64) float64 {
	var vs []float64
	for _, r := range rs {
		vs = append(vs, of(r))
	}
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	return vs[len(vs)/2]
}
