package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// The height of a tile in levels, which C2SP fixes and sumdb's paths spell out.
const height = 8

type treeRequest struct {
	Directory   string
	Size        int64
	Root        []byte
	Inclusion   []inclusion
	Consistency []consistency
}

// inclusion is a leaf with the proof that polstore made for it.
type inclusion struct {
	Index int64
	Leaf  []byte
	Proof [][]byte
}

// consistency is an older tree with the proof that polstore made for it.
type consistency struct {
	Size  int64
	Root  []byte
	Proof [][]byte
}

// treeAnswer holds Go's root and proofs in the order of the request; Error names the first check that failed.
type treeAnswer struct {
	Root        []byte
	Inclusion   [][][]byte
	Consistency [][][]byte
	Error       string
}

// tileFiles reads tiles from the files of a directory in C2SP's layout.
type tileFiles struct{ directory string }

func (files tileFiles) Height() int { return height }

func (files tileFiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(files.directory, c2spPath(tile)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (files tileFiles) SaveTiles([]tlog.Tile, [][]byte) {}

// c2spPath drops the height from a tile's path, and names entry bundles as C2SP does.
func c2spPath(tile tlog.Tile) string {
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
	return strings.Replace(path, "tile/data/", "tile/entries/", 1)
}

func readTree(asked treeRequest) (found treeAnswer) {
	found.Error = fault(found.fill(asked))
	return found
}

func (found *treeAnswer) fill(asked treeRequest) error {
	root, err := hash(asked.Root)
	if err != nil {
		return err
	}
	// The reader checks tiles against the root. In x/mod 0.7.0 it leaves some out (where the root is made of more
	// hashes than tiles), so Go's own proofs are checked like ours.
	reader := tlog.TileHashReader(tlog.Tree{N: asked.Size, Hash: root}, tileFiles{asked.Directory})
	computed, err := tlog.TreeHash(asked.Size, reader)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	found.Root = computed[:]
	for _, item := range asked.Inclusion {
		proof, err := tlog.ProveRecord(asked.Size, item.Index, reader)
		if err != nil {
			return fmt.Errorf("inclusion of %d: %w", item.Index, err)
		}
		found.Inclusion = append(found.Inclusion, bytesOf(proof))
		ours, err := hashes(item.Proof)
		if err != nil {
			return err
		}
		for _, made := range [][]tlog.Hash{proof, ours} {
			if err := tlog.CheckRecord(made, asked.Size, root, item.Index, tlog.RecordHash(item.Leaf)); err != nil {
				return fmt.Errorf("inclusion of %d: %w", item.Index, err)
			}
		}
	}
	for _, item := range asked.Consistency {
		proof, err := tlog.ProveTree(asked.Size, item.Size, reader)
		if err != nil {
			return fmt.Errorf("consistency with %d: %w", item.Size, err)
		}
		found.Consistency = append(found.Consistency, bytesOf(proof))
		ours, err := hashes(item.Proof)
		if err != nil {
			return err
		}
		old, err := hash(item.Root)
		if err != nil {
			return err
		}
		for _, made := range [][]tlog.Hash{proof, ours} {
			if err := tlog.CheckTree(made, asked.Size, root, item.Size, old); err != nil {
				return fmt.Errorf("consistency with %d: %w", item.Size, err)
			}
		}
	}
	return nil
}

// checkEntries hashes all entries of a tree and compares them with the leaf hashes of its tiles.
func checkEntries(asked treeRequest) error {
	root, err := hash(asked.Root)
	if err != nil {
		return err
	}
	files := tileFiles{asked.Directory}
	reader := tlog.TileHashReader(tlog.Tree{N: asked.Size, Hash: root}, files)
	for start := int64(0); start < asked.Size; start += 1 << height {
		tile := tlog.Tile{H: height, L: -1, N: start >> height, W: 1 << height}
		if asked.Size-start < 1<<height {
			tile.W = int(asked.Size - start)
		}
		bundles, err := files.ReadTiles([]tlog.Tile{tile})
		if err != nil {
			return err
		}
		bundle := bundles[0]
		var indexes []int64
		var got []tlog.Hash
		for number := 0; number < tile.W; number++ {
			if len(bundle) < 2 || len(bundle)-2 < int(binary.BigEndian.Uint16(bundle)) {
				return fmt.Errorf("entry %d is cut short", start+int64(number))
			}
			length := int(binary.BigEndian.Uint16(bundle))
			got = append(got, tlog.RecordHash(bundle[2:2+length]))
			indexes = append(indexes, tlog.StoredHashIndex(0, start+int64(number)))
			bundle = bundle[2+length:]
		}
		if len(bundle) > 0 {
			return fmt.Errorf("%d bytes after the entries of %s", len(bundle), c2spPath(tile))
		}
		expected, err := reader.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for number := range got {
			if got[number] != expected[number] {
				return fmt.Errorf("entry %d has another hash than its tile", start+int64(number))
			}
		}
	}
	return nil
}

func hash(data []byte) (found tlog.Hash, err error) {
	if len(data) != tlog.HashSize {
		return found, fmt.Errorf("a hash of %d bytes", len(data))
	}
	copy(found[:], data)
	return found, nil
}

func hashes(items [][]byte) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(items))
	for number, item := range items {
		var err error
		if found[number], err = hash(item); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func bytesOf(items []tlog.Hash) [][]byte {
	found := make([][]byte, len(items))
	for number := range items {
		found[number] = items[number][:]
	}
	return found
}
