// Command modules writes down what is inside the binary, in the three forms
// that packagers need:
//
//   - the Go modules that the Yocto recipe fetches, with their checksums, so
//     that its do_compile needs no network,
//   - their licences with checksums, for the same recipe,
//   - the licence texts, for the copyright file of the Debian package.
//
// All three come from go.mod, go.sum and the module cache; a test fails when
// one of them is out of step. Run `make modules` after a change of go.mod or
// of what is imported.
package main
