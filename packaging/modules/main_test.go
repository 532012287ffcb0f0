package main

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

func TestGeneratedFilesAreInStep(t *testing.T) {
	t.Parallel()
	const root = "../.."
	files, err := generate(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is out of step with go.mod or with what is imported: run `make modules`", name)
		}
	}
}

// The recipe names the version and the checksum of our own licence by hand.
func TestRecipeIsInStep(t *testing.T) {
	t.Parallel()
	changelog, err := os.ReadFile("../CHANGELOG")
	if err != nil {
		t.Fatal(err)
	}
	heading := regexp.MustCompile(`(?m)^## \[(\d[^]]*)\]`).FindSubmatch(changelog)
	if heading == nil {
		t.Fatal("packaging/CHANGELOG has no numbered heading")
	}
	recipe, err := os.ReadFile("../../yocto/meta-holdfast/recipes-connectivity/holdfast/holdfast_" + string(heading[1]) + ".bb")
	if err != nil {
		t.Fatalf("rename the recipe to the version of the changelog: %v", err)
	}
	licence, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("file://src/${GO_IMPORT}/LICENSE;md5=%x\"", md5.Sum(licence))
	if !bytes.Contains(recipe, []byte(want)) {
		t.Errorf("the recipe does not have %s", want)
	}
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ in, want string }{
		"plain":       {in: "golang.org/x/sys", want: "golang.org/x/sys"},
		"one capital": {in: "github.com/!burnt!sushi/toml", want: "github.com/BurntSushi/toml"},
		"at the end":  {in: "example.com/a!b", want: "example.com/aB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := unescape(tt.in); got != tt.want {
				t.Errorf("unescape(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestSPDX(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"MIT over two lines":      {text: "Permission is hereby granted,\nfree of charge, to any person", want: "MIT"},
		"BSD with the third part": {text: "Redistribution and use in source and binary forms ... Neither the name of", want: "BSD-3-Clause"},
		"BSD without":             {text: "Redistribution and use in source and binary forms ...", want: "BSD-2-Clause"},
		"Apache":                  {text: "Apache License\n  Version 2.0, January 2004", want: "Apache-2.0"},
		"something else":          {text: "All rights reserved.", want: ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := spdx([]byte(tt.text)); got != tt.want {
				t.Errorf("spdx(%q) = %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}
