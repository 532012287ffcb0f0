package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
)

// Sizes of the chart, in pixels.
const (
	chartWidth = 760
	chartLeft  = 210 // of the bars
	chartBar   = 16
	chartGap   = 14
)

// chart draws the CPU per message of each scenario and peer as bars, the longest
// of a scenario being as long as there is room.
func chart(peers []peer, results []result) []byte {
	var names []string
	for _, r := range results {
		if r.cpuPerMillion > 0 && !slices.Contains(names, r.scenario) {
			names = append(names, r.scenario)
		}
	}
	colours := []string{"#8a8f98", "#c9ced6", "#2f6fde", "#6aa84f", "#e69138"}
	height := 40 + len(names)*(len(peers)*chartBar+chartGap)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/><text x="8" y="20" font-size="14">CPU seconds per million messages (less is better)</text>`+"\n", chartWidth, height)
	y := 40
	for _, name := range names {
		longest := 0.0
		for _, p := range peers {
			longest = max(longest, median(results, name, p.name).cpuPerMillion)
		}
		fmt.Fprintf(&b, `<text x="8" y="%d">%s</text>`+"\n", y+12, html.EscapeString(name))
		for i, p := range peers {
			v := median(results, name, p.name).cpuPerMillion
			width := int(v / longest * (chartWidth - chartLeft - 150))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/><text x="%d" y="%d">%s %.1f</text>`+"\n",
				chartLeft, y, width, chartBar-2, colours[i%len(colours)], chartLeft+width+6, y+12, html.EscapeString(p.name), v)
			y += chartBar
		}
		y += chartGap
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
