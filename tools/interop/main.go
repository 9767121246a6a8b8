// Command interop does with Go's own transparency log packages (golang.org/x/mod/sumdb) what polstore does, so that a
// test can compare the two byte for byte. It reads one JSON request from stdin and writes one JSON answer to stdout:
//
//   - trees: reads tiles from a directory, checks them against a root, and makes and checks proofs;
//   - entries: hashes every entry bundle and compares with the leaf hashes in the tiles;
//   - notes: checks signatures and cosignatures;
//   - sign: signs and cosigns a text.
//
// Bytes are base64 in the JSON, as encoding/json has them. Build without modules, on Debian's package
// golang-golang-x-mod-dev: GO111MODULE=off GOPATH=/usr/share/gocode go build -o interop ./tools/interop
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

type request struct {
	Trees   []treeRequest
	Entries []treeRequest
	Notes   []noteRequest
	Sign    []signRequest
}

type answer struct {
	Trees   []treeAnswer
	Entries []string
	Notes   []noteAnswer
	Sign    []signAnswer
}

func main() {
	var asked request
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, "interop: request:", err)
		os.Exit(2)
	}
	var found answer
	for _, item := range asked.Trees {
		found.Trees = append(found.Trees, readTree(item))
	}
	for _, item := range asked.Entries {
		found.Entries = append(found.Entries, fault(checkEntries(item)))
	}
	for _, item := range asked.Notes {
		found.Notes = append(found.Notes, checkNote(item))
	}
	for _, item := range asked.Sign {
		found.Sign = append(found.Sign, signText(item))
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fmt.Fprintln(os.Stderr, "interop: answer:", err)
		os.Exit(1)
	}
}

// fault returns an error's text, or nothing for no error.
func fault(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
