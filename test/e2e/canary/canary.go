// Package canary looks for secrets where they must not be. It knows a secret in the
// shapes in which it gets about: as it is, in hexadecimal, and in base64 of any text
// that it is a part of, such as the user and password of basic authentication. It takes
// the standard library alone: the hostile build of the end-to-end tests is made of it.
package canary

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// shortest is the length below which a shape would be found by chance, and the number
// of bytes by which shapes are told apart at first.
const shortest = 8

// Shape is one form of one secret.
type Shape struct {
	Name string // Of the secret; never the secret.
	Text []byte
}

// Set is what to look for. The zero value is empty. It is not safe for use while it
// grows.
type Set struct {
	shapes  []Shape
	begin   map[uint64][]int // Shapes by their first bytes.
	filter  [1 << 13]uint64  // One bit for each hash of first bytes.
	longest int
}

// NewSet makes a set of shapes that another set gave.
func NewSet(shapes []Shape) (*Set, error) {
	s := &Set{}
	for _, shape := range shapes {
		if len(shape.Text) < shortest {
			return nil, fmt.Errorf("canary %q: a shape of %d bytes would be found by chance: want %d", shape.Name, len(shape.Text), shortest)
		}
		s.add(shape)
	}
	return s, nil
}

// Add adds a secret under a name by which findings are told.
func (s *Set) Add(name, secret string) error {
	shapes := [][]byte{
		[]byte(secret), []byte(hex.EncodeToString([]byte(secret))), []byte(strings.ToUpper(hex.EncodeToString([]byte(secret)))),
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			shapes = append(shapes, inBase64(encoding, secret, before))
		}
	}
	for _, text := range shapes {
		if len(text) < shortest {
			return fmt.Errorf("canary %q is too short: it would be found by chance", name)
		}
	}
	for _, text := range shapes {
		s.add(Shape{Name: name, Text: text})
	}
	return nil
}

// inBase64 gives what stands in the encoding of every text that has so many bytes
// before the secret, counted in threes: without the characters at both ends that also
// encode a neighbour.
func inBase64(encoding *base64.Encoding, secret string, before int) []byte {
	text := encoding.EncodeToString(append(make([]byte, before), secret...))
	from := []int{0, 2, 3}[before]
	to := (before + len(secret)) / 3 * 4
	return []byte(text[from:max(from, to)])
}

func (s *Set) add(shape Shape) {
	for _, known := range s.shapes {
		if string(known.Text) == string(shape.Text) {
			return
		}
	}
	if s.begin == nil {
		s.begin = map[uint64][]int{}
	}
	key := binary.LittleEndian.Uint64(shape.Text)
	s.begin[key] = append(s.begin[key], len(s.shapes))
	word, bit := place(key)
	s.filter[word] |= bit
	s.shapes = append(s.shapes, shape)
	s.longest = max(s.longest, len(shape.Text))
}

// place is where the filter keeps the first bytes of a shape.
func place(key uint64) (word int, bit uint64) {
	hash := key * 0x9e3779b97f4a7c15 >> 45 // The upper 19 bits: 1<<13 words of 64.
	return int(hash >> 6), 1 << (hash & 63)
}

// Shapes gives everything that is looked for.
func (s *Set) Shapes() []Shape { return slices.Clone(s.shapes) }

// In gives the names of the secrets that are in the data, each once.
func (s *Set) In(data []byte) []string {
	var found []string
	for i := 0; i+shortest <= len(data); i++ {
		key := binary.LittleEndian.Uint64(data[i:])
		if word, bit := place(key); s.filter[word]&bit == 0 {
			continue
		}
		for _, n := range s.begin[key] {
			shape := s.shapes[n]
			if len(data)-i >= len(shape.Text) && string(data[i:i+len(shape.Text)]) == string(shape.Text) && !slices.Contains(found, shape.Name) {
				found = append(found, shape.Name)
			}
		}
	}
	slices.Sort(found)
	return found
}

// chunk is how much of a stream is looked at at once.
const chunk = 1 << 20

// Read gives the names of the secrets in a stream, also with the error that ended it.
func (s *Set) Read(r io.Reader) ([]string, error) {
	var found []string
	buffer := make([]byte, 0, chunk+s.longest)
	for {
		n, err := io.ReadFull(r, buffer[len(buffer):len(buffer)+chunk])
		buffer = buffer[:len(buffer)+n]
		for _, name := range s.In(buffer) {
			if !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
		if err != nil {
			slices.Sort(found)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return found, err
		}
		// What began at the end is found with what comes next.
		keep := min(len(buffer), s.longest)
		buffer = buffer[:copy(buffer[:keep], buffer[len(buffer)-keep:])]
	}
}
