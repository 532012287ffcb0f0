package sparkplug

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asserted is how many assertions bind an edge node, by the beginning of their ids.
// It is here so that a line lost from testdata/assertions.txt is missed.
var asserted = map[string]int{
	"case-sensitivity": 2, "message-flow": 27, "operational-behavior": 25,
	"payloads-alias": 3, "payloads-dataset": 7, "payloads-dbirth": 6, "payloads-ddata": 6, "payloads-ddeath": 4,
	"payloads-metric": 8, "payloads-name": 2, "payloads-nbirth": 8, "payloads-ndata": 6, "payloads-ndeath": 8,
	"payloads-propertyset": 4, "payloads-sequence": 3, "payloads-template": 26, "payloads-timestamp": 1,
	"principles-birth": 1, "principles-persistence": 2, "principles-rbe": 1, "topic-structure": 10,
	"topics-dbirth": 6, "topics-ddata": 5, "topics-ddeath": 3, "topics-nbirth": 11, "topics-ndata": 5, "topics-ndeath": 3,
}

// TestAssertions: every assertion of Sparkplug 3.0 that binds an edge node is proven
// by tests that exist, or has a reason why it is not.
func TestAssertions(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "assertions.txt"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testsHere(t)
	found, seen := map[string]int{}, map[string]bool{}
	for group := range strings.SplitSeq(string(data), "\n= ") {
		if strings.HasPrefix(group, "#") {
			continue
		}
		var ids, proofs, reasons int
		words, rest, _ := strings.Cut(group, "\n")
		for line := range strings.Lines(rest) {
			line = strings.TrimSuffix(line, "\n")
			proof, indented := strings.CutPrefix(line, "\t")
			reason, none := strings.CutPrefix(proof, "none: ")
			id, isID := strings.CutPrefix(line, "tck-id-")
			switch {
			case line == "":
			case none:
				if reasons++; len(strings.Fields(reason)) < 8 || !strings.HasSuffix(reason, ".") {
					t.Errorf("%s: the reason %q is no sentence", words, reason)
				}
			case indented:
				if proofs++; !tests[proof] {
					t.Errorf("%s: there is no %s", words, proof)
				}
			case !isID || seen[id]:
				t.Errorf("%s: %q is no id, or there twice", words, line)
			default:
				ids++
				seen[id] = true
				parts := strings.SplitN(id, "-", 3)
				found[parts[0]+"-"+parts[1]]++
			}
		}
		if words == "" || ids == 0 || (proofs == 0) == (reasons == 0) {
			t.Errorf("%q has %d ids, %d tests and %d reasons", words, ids, proofs, reasons)
		}
	}
	for prefix, n := range asserted {
		if found[prefix] != n {
			t.Errorf("%d assertions begin with tck-id-%s, want %d", found[prefix], prefix, n)
		}
		delete(found, prefix)
	}
	for prefix := range found {
		t.Errorf("tck-id-%s is none of the specification's", prefix)
	}
}

// testsHere are the tests of this package.
func testsHere(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && strings.HasPrefix(d.Name.Name, "Test") {
				tests[d.Name.Name] = true
			}
		}
	}
	return tests
}
