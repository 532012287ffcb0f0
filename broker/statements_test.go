package broker_test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// numbered is how many statements each section of a specification has, taken
// from Appendix B of MQTT 5.0 and of MQTT 3.1.1. It is here so that a line lost
// from testdata/statements is missed.
var numbered = map[string]string{
	"mqtt_v5.0.txt": `
		1.5.4: 1-3, 1.5.5: 1-1, 1.5.7: 1-1, 2.1.3: 1-1, 2.2.1: 2-6, 2.2.2: 1-1,
		3.1.0: 1-2, 3.1.2: 1-30, 3.1.3: 1-12, 3.1.4: 1-6, 3.2.0: 1-2, 3.2.2: 1-22,
		3.3.1: 1-13, 3.3.2: 1-20, 3.3.4: 1-10, 3.4.2: 1-3, 3.5.2: 1-3, 3.6.1: 1-1, 3.6.2: 1-3, 3.7.2: 1-3,
		3.8.1: 1-1, 3.8.3: 1-5, 3.8.4: 1-8, 3.9.2: 1-2, 3.9.3: 1-2,
		3.10.1: 1-1, 3.10.3: 1-2, 3.10.4: 1-6, 3.11.2: 1-2, 3.11.3: 1-2, 3.12.4: 1-1,
		3.14.0: 1-1, 3.14.1: 1-1, 3.14.2: 1-4, 3.14.4: 1-3, 3.15.1: 1-1, 3.15.2: 1-3,
		4.1.0: 1-2, 4.2: 1-1, 4.3.1: 1-1, 4.3.2: 1-5, 4.3.3: 1-13, 4.4.0: 1-2, 4.5.0: 1-2, 4.6.0: 1-6,
		4.7.0: 1-1, 4.7.1: 1-2, 4.7.2: 1-1, 4.7.3: 1-4, 4.8.2: 1-6, 4.9.0: 1-3,
		4.12.0: 1-7, 4.12.1: 1-2, 4.13.1: 1-1, 4.13.2: 1-1, 6.0.0: 1-4`,
	"mqtt_v3.1.1.txt": `
		1.5.3: 1-3, 2.2.2: 1-2, 2.3.1: 1-7, 3.1.0: 1-2, 3.1.2: 1-24, 3.1.3: 1-11, 3.1.4: 1-5,
		3.2.0: 1-1, 3.2.2: 1-6, 3.3.1: 1-12, 3.3.2: 1-3, 3.3.4: 1-1, 3.3.5: 1-2, 3.6.1: 1-1,
		3.8.1: 1-1, 3.8.3: 1-4, 3.8.4: 1-6, 3.9.3: 1-2, 3.10.1: 1-1, 3.10.3: 1-2, 3.10.4: 1-6, 3.12.4: 1-1,
		3.14.1: 1-1, 3.14.4: 1-3, 4.1.0: 1-2, 4.3.1: 1-1, 4.3.2: 1-2, 4.3.3: 1-2, 4.4.0: 1-1, 4.5.0: 1-2,
		4.6.0: 1-6, 4.7.1: 1-3, 4.7.2: 1-1, 4.7.3: 1-4, 4.8.0: 1-2, 6.0.0: 1-4,
		7.0.0: 1-2, 7.1.1: 1-1, 7.1.2: 1-1`,
}

// TestStatements: every numbered statement of both specifications is proven by
// tests that exist, or has a reason why it is not, and every sentence of the
// rules proves one.
func TestStatements(t *testing.T) {
	sources := make(map[string]*source)
	proves := make(map[string]bool)
	for file, sections := range numbered {
		t.Run(file, func(t *testing.T) {
			proven, reasoned := 0, 0
			missing := ids(t, sections)
			for _, s := range readStatements(t, file) {
				if !missing[s.id] {
					t.Errorf("%s is there twice, or is no statement", s.id)
				}
				delete(missing, s.id)
				if s.words == "" {
					t.Errorf("%s says nothing", s.id)
				}
				if s.reason != "" {
					reasoned++
				} else {
					proven++
				}
				if err := s.check(sources, proves); err != nil {
					t.Errorf("%s: %v", s.id, err)
				}
			}
			for id := range missing {
				t.Errorf("%s is missing", id)
			}
			t.Logf("%d statements proven, %d with a reason", proven, reasoned)
		})
	}
	for test, rs := range map[string]rules{"TestConnectRules": connectRules, "TestPublishRules": publishRules, "TestSubscribeRules": subscribeRules} {
		for sentence, r := range rs {
			if !proves["broker."+test+"/"+sentence] && !r.beyond {
				t.Errorf("no statement names broker.%s/%s", test, sentence)
			}
		}
	}
}

// ids lists them.
func ids(t *testing.T, sections string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for part := range strings.SplitSeq(sections, ",") {
		section, numbers, _ := strings.Cut(strings.TrimSpace(part), ": ")
		var first, last int
		if _, err := fmt.Sscanf(numbers, "%d-%d", &first, &last); err != nil {
			t.Fatalf("%q: %v", part, err)
		}
		for n := first; n <= last; n++ {
			all[fmt.Sprintf("MQTT-%s-%d", section, n)] = true
		}
	}
	return all
}

// statement is one entry of a table.
type statement struct {
	id, words string
	tests     []string
	reason    string
}

func readStatements(t *testing.T, file string) []*statement {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "statements", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []*statement
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		proof, indented := strings.CutPrefix(line, "\t")
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case !indented:
			id, words, _ := strings.Cut(line, "  ")
			all = append(all, &statement{id: id, words: words})
		case len(all) == 0:
			t.Fatalf("%s:%d: a proof of nothing", file, n)
		default:
			s := all[len(all)-1]
			if reason, none := strings.CutPrefix(proof, "none: "); none {
				s.reason = reason
			} else {
				s.tests = append(s.tests, proof)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// check says what is wrong with a statement's proofs, and notes them.
func (s *statement) check(sources map[string]*source, proves map[string]bool) error {
	switch {
	case len(s.tests) > 0 && s.reason != "":
		return fmt.Errorf("has tests, and a reason not to")
	case s.reason != "":
		if len(strings.Fields(s.reason)) < 8 || !strings.HasSuffix(s.reason, ".") {
			return fmt.Errorf("the reason %q is no sentence", s.reason)
		}
		return nil
	case len(s.tests) == 0:
		return fmt.Errorf("has neither a test nor a reason")
	}
	for _, test := range s.tests {
		pkg, name, _ := strings.Cut(test, ".")
		if sources[pkg] == nil {
			src, err := readTests(pkg)
			if err != nil {
				return err
			}
			sources[pkg] = src
		}
		name, subtest, _ := strings.Cut(name, "/")
		if err := sources[pkg].has(name, subtest); err != nil {
			return fmt.Errorf("%s: %w", test, err)
		}
		proves[test] = true
	}
	return nil
}

// source is the tests of one package.
type source struct {
	folder string
	tests  map[string]*ast.FuncDecl
	// tables are the package's variables, which test functions range over.
	tables map[string]ast.Node
}

func readTests(pkg string) (*source, error) {
	src := &source{folder: pkg, tests: make(map[string]*ast.FuncDecl), tables: make(map[string]ast.Node)}
	if pkg == "broker" {
		src.folder = "."
	}
	files, err := filepath.Glob(filepath.Join(src.folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("package %s has no tests, %w", pkg, err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && strings.HasPrefix(d.Name.Name, "Test") {
					src.tests[d.Name.Name] = d
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok && len(v.Names) == 1 {
						src.tables[v.Names[0].Name] = v
					}
				}
			}
		}
	}
	return src, nil
}

// has says whether there is such a test. A subtest has its name as a string in
// the test function or in a table that this mentions, or is a golden file.
func (src *source) has(test, subtest string) error {
	d := src.tests[test]
	switch {
	case d == nil:
		return fmt.Errorf("there is no such test")
	case subtest == "":
		return nil
	case test == "TestGolden":
		_, err := os.Stat(filepath.Join(src.folder, "testdata", subtest+".pkt"))
		return err
	}
	nodes := []ast.Node{d}
	ast.Inspect(d, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok && src.tables[name.Name] != nil {
			nodes = append(nodes, src.tables[name.Name])
		}
		return true
	})
	if !slices.ContainsFunc(nodes, func(n ast.Node) bool { return names(n, subtest) }) {
		return fmt.Errorf("there is no such subtest")
	}
	return nil
}

// names says whether a string in n is that one.
func names(n ast.Node, want string) (found bool) {
	ast.Inspect(n, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, err := strconv.Unquote(lit.Value)
			found = found || err == nil && s == want
		}
		return !found
	})
	return found
}
