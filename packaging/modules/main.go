package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5" //nolint:gosec // BitBake's LIC_FILES_CHKSUM is an MD5; it notices change, it protects nothing
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The generated files, from the root of the tree.
const (
	modsFile      = "yocto/meta-holdfast/recipes-connectivity/holdfast/holdfast-go-mods.inc"
	licensesFile  = "yocto/meta-holdfast/recipes-connectivity/holdfast/holdfast-licenses.inc"
	copyrightFile = "packaging/deb/copyright"
	packagesFile  = "packaging/packages"
)

// tags are those of every build (Makefile, TAGS): they decide what is linked.
const tags = "netgo,osusergo,sqlite_omit_load_extension,nethttpomithttp2"

func main() {
	if err := run(context.Background(), "."); err != nil {
		fmt.Fprintf(os.Stderr, "modules: %v\n", err)
		os.Exit(1)
	}
}

// run writes the generated files below root, the folder of go.mod.
func run(ctx context.Context, root string) error {
	files, err := generate(ctx, root)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil { //nolint:gosec // part of the sources, which all may read
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// generate returns the content of the generated files by name. It changes
// nothing outside a temporary folder, and needs no network when the modules
// are in the module cache.
func generate(ctx context.Context, root string) (_ map[string][]byte, err error) {
	cache, err := os.MkdirTemp("", "holdfast-modules-")
	if err != nil {
		return nil, fmt.Errorf("make an empty module cache: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cache)) }()

	goTool := tool{root: root}
	if goTool.env, err = emptyCacheEnv(ctx, goTool, cache); err != nil {
		return nil, err
	}
	// What the go command puts into an empty cache while it loads the command
	// is what the recipe has to fetch: it may take go.mod files of modules that
	// nothing is linked from.
	linked, err := goTool.modules(ctx, "./cmd/holdfast")
	if err != nil {
		return nil, err
	}
	packages, err := goTool.packages(ctx, "./cmd/holdfast")
	if err != nil {
		return nil, err
	}
	mods, err := fetched(filepath.Join(cache, "cache", "download"))
	if err != nil {
		return nil, err
	}
	var licenses []license
	for _, m := range linked {
		l, err := readLicense(m)
		if err != nil {
			return nil, err
		}
		licenses = append(licenses, l)
	}
	return map[string][]byte{
		modsFile:      renderMods(mods),
		licensesFile:  renderLicenses(licenses),
		copyrightFile: renderCopyright(licenses),
		packagesFile:  packages,
	}, nil
}

// tool runs the go command in root.
type tool struct {
	root string
	env  []string
}

func (t tool) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the arguments are this program's own
	cmd.Dir = t.root
	cmd.Env = append(os.Environ(), t.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// emptyCacheEnv makes the go command start from the empty module cache, filled
// from the machine's own cache first. The target is fixed so that every
// machine writes the same files.
func emptyCacheEnv(ctx context.Context, t tool, cache string) ([]string, error) {
	out, err := t.output(ctx, "env", "-json", "GOMODCACHE", "GOPROXY", "GOFLAGS")
	if err != nil {
		return nil, err
	}
	var env struct{ GOMODCACHE, GOPROXY, GOFLAGS string }
	if err := json.Unmarshal(out, &env); err != nil {
		return nil, fmt.Errorf("decode go env: %w", err)
	}
	return []string{
		"GOMODCACHE=" + cache,
		"GOPROXY=file://" + filepath.Join(env.GOMODCACHE, "cache", "download") + "," + env.GOPROXY,
		"GOSUMDB=off", // go.sum has every checksum; it is asked for none that is not there
		"GOFLAGS=" + env.GOFLAGS + " -modcacherw",
		"GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=1",
	}, nil
}

// module is what is read of `go list -json=Module`.
type module struct {
	Path, Version, Dir string
	Main               bool
}

// modules returns the modules that the packages are linked from, without this
// one, sorted by path.
func (t tool) modules(ctx context.Context, pattern string) ([]module, error) {
	out, err := t.output(ctx, "list", "-tags", tags, "-deps", "-json=Module", pattern)
	if err != nil {
		return nil, err
	}
	seen := map[string]module{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var pkg struct{ Module *module }
		err := dec.Decode(&pkg)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		if pkg.Module != nil && !pkg.Module.Main {
			seen[pkg.Module.Path] = *pkg.Module
		}
	}
	mods := make([]module, 0, len(seen))
	for _, m := range seen {
		mods = append(mods, m)
	}
	slices.SortFunc(mods, func(a, b module) int { return cmp.Compare(a.Path, b.Path) })
	return mods, nil
}

// packages lists what the packages import, itself and through others, one on a line.
// Internal ones are left out: they come with those that others may import.
func (t tool) packages(ctx context.Context, pattern string) ([]byte, error) {
	out, err := t.output(ctx, "list", "-tags", tags, "-deps", pattern)
	if err != nil {
		return nil, err
	}
	paths := slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool {
		return strings.HasPrefix(p, "vendor/") || slices.Contains(strings.Split(p, "/"), "internal")
	})
	slices.Sort(paths)
	return []byte(strings.Join(paths, "\n") + "\n"), nil
}

// download is one file of a module proxy: a module's zip, or its go.mod alone.
type download struct {
	path, version, sha256 string
	modOnly               bool
}

// fetched lists the files in the download folder of a module cache.
func fetched(dir string) ([]download, error) {
	var found []download
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(name)) != "@v" {
			return err
		}
		ext := filepath.Ext(name)
		base := strings.TrimSuffix(name, ext)
		switch ext {
		case ".zip":
		case ".mod":
			// The fetcher takes it out of the zip where there is one.
			if _, err := os.Stat(base + ".zip"); err == nil {
				return nil
			}
		default:
			return nil
		}
		content, err := os.ReadFile(name) //nolint:gosec // nobody else writes into this temporary folder
		if err != nil {
			return fmt.Errorf("read the module cache: %w", err)
		}
		escaped, err := filepath.Rel(dir, filepath.Dir(filepath.Dir(name)))
		if err != nil {
			return fmt.Errorf("name the module of %s: %w", name, err)
		}
		sum := sha256.Sum256(content)
		found = append(found, download{
			path:    unescape(filepath.ToSlash(escaped)),
			version: unescape(filepath.Base(base)),
			sha256:  hex.EncodeToString(sum[:]),
			modOnly: ext == ".mod",
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the fetched modules: %w", err)
	}
	slices.SortFunc(found, func(a, b download) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.version, b.version))
	})
	return found, nil
}

// unescape undoes the module cache's way with capitals: !x stands for X (Go
// Modules Reference, Module proxies, GOPROXY protocol).
func unescape(s string) string {
	parts := strings.Split(s, "!")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}

// license is what a module says about its use.
type license struct {
	module

	spdx, file   string
	text, notice []byte
}

// readLicense reads the licence that lies in the module's top folder.
func readLicense(m module) (license, error) {
	l := license{module: m}
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING", "LICENCE"} {
		text, err := os.ReadFile(filepath.Join(m.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return l, fmt.Errorf("read the licence of %s: %w", m.Path, err)
		}
		l.file, l.text = name, text
		if l.spdx = spdx(text); l.spdx == "" {
			return l, fmt.Errorf("the licence of %s (%s) is none of those known here: read it, then teach spdx() about it", m.Path, name)
		}
		notice, err := os.ReadFile(filepath.Join(m.Dir, "NOTICE"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return l, fmt.Errorf("read the notice of %s: %w", m.Path, err)
		}
		l.notice = notice
		return l, nil
	}
	return l, fmt.Errorf("%s has no licence file", m.Path)
}

// spdx names a licence by words that no other one has; "" if it is unknown.
func spdx(text []byte) string {
	words := string(bytes.Join(bytes.Fields(text), []byte(" ")))
	has := func(s string) bool { return strings.Contains(words, s) }
	switch {
	case has("Apache License") && has("Version 2.0"):
		return "Apache-2.0"
	case has("Mozilla Public License Version 2.0"):
		return "MPL-2.0"
	case has("Eclipse Public License - v 2.0"):
		return "EPL-2.0"
	case has("Permission is hereby granted, free of charge"):
		return "MIT"
	case has("Permission to use, copy, modify, and") && has("distribute this software for any purpose"):
		return "ISC"
	case has("Redistribution and use in source and binary forms") && has("Neither the name"):
		return "BSD-3-Clause"
	case has("Redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	}
	return ""
}

const generated = "# Written by `make modules`: a change by hand does not last.\n\n"

func renderMods(mods []download) []byte {
	b := []byte(generated + "SRC_URI += \" \\\n")
	for _, m := range mods {
		only := ""
		if m.modOnly {
			only = "mod=1;"
		}
		b = fmt.Appendf(b, "    gomod://%s;version=%s;%ssha256sum=%s \\\n", m.path, m.version, only, m.sha256)
	}
	return append(b, "\"\n"...)
}

func renderLicenses(licenses []license) []byte {
	var names []string
	for _, l := range licenses {
		names = append(names, l.spdx)
	}
	slices.Sort(names)
	b := fmt.Appendf([]byte(generated), "LICENSE += \"& %s\"\n\nLIC_FILES_CHKSUM += \" \\\n", strings.Join(slices.Compact(names), " & "))
	for _, l := range licenses {
		sum := md5.Sum(l.text) //nolint:gosec // see the import
		b = fmt.Appendf(b, "    file://pkg/mod/%s@%s/%s;md5=%x;spdx=%s \\\n", l.Path, l.Version, l.file, sum, l.spdx)
	}
	return append(b, "\"\n"...)
}

const copyrightHead = `Holdfast is under the Apache License, version 2.0, which is in
/usr/share/common-licenses/Apache-2.0 on Debian systems.

The binary is linked statically, and holds besides Holdfast itself

  - the Go runtime and standard library (BSD-3-Clause, the text of
    golang.org/x/sys below),
  - SQLite, which its authors have put into the public domain,
  - the GNU C library (LGPL-2.1-or-later, which is in
    /usr/share/common-licenses/LGPL-2.1); Holdfast's sources are what a new
    link against another version of it takes,
  - the Go modules below.
`

func renderCopyright(licenses []license) []byte {
	b := []byte(copyrightHead)
	for _, l := range licenses {
		b = fmt.Appendf(b, "\n%s\n%s %s (%s)\n\n", strings.Repeat("-", 72), l.Path, l.Version, l.spdx)
		if l.spdx == "Apache-2.0" {
			b = append(b, "The text is in /usr/share/common-licenses/Apache-2.0 on Debian systems.\n"...)
		} else {
			b = append(append(b, bytes.TrimSpace(l.text)...), '\n')
		}
		if len(l.notice) > 0 {
			b = append(append(append(b, '\n'), bytes.TrimSpace(l.notice)...), '\n')
		}
	}
	return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
}
