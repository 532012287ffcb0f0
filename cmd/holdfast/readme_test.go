package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The map in the README has every package in its place, and no other folder.
func TestReadmeMap(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "## The map\n")
	text, _, _ = strings.Cut(text, "\n## ")
	mapped := map[string]bool{}
	var parents []string
	for _, line := range regexp.MustCompile(`(?m)^    ( *)([a-z][a-z/-]*)/ `).FindAllStringSubmatch(text, -1) {
		depth := min(len(line[1])/2, len(parents))
		parents = append(parents[:depth], line[2])
		mapped[strings.Join(parents, "/")] = true
	}
	for name := range layers {
		if !mapped[name] {
			t.Errorf("%s is not in the map", name)
		}
	}
	for name := range mapped {
		if info, err := os.Stat("../../" + name); err != nil || !info.IsDir() {
			t.Errorf("the map has %s, which is no folder", name)
		}
	}
}
