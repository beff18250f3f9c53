package plan

import (
	"encoding/binary"
	"math/bits"
)

// bitset is a set of small numbers. Its size is fixed when it is made.
type bitset []uint64

func newBitset(size int) bitset { return make(bitset, (size+63)/64) }

func (b bitset) add(n int)      { b[n/64] |= 1 << (n % 64) }
func (b bitset) remove(n int)   { b[n/64] &^= 1 << (n % 64) }
func (b bitset) has(n int) bool { return b[n/64]&(1<<(n%64)) != 0 }

// firstIn gives the least number that is in both sets, or -1.
func (b bitset) firstIn(other bitset) int {
	for i, word := range b {
		if common := word & other[i]; common != 0 {
			return i*64 + bits.TrailingZeros64(common)
		}
	}
	return -1
}

// each calls visit with every number of b that is not in except, in order, until it
// returns false.
func (b bitset) each(except bitset, visit func(int) bool) {
	for i, word := range b {
		for word &^= except[i]; word != 0; word &= word - 1 {
			if !visit(i*64 + bits.TrailingZeros64(word)) {
				return
			}
		}
	}
}

// key gives equal text for equal sets with the same mark, and different text for
// others.
func (b bitset) key(mark bool) string {
	text := make([]byte, 0, 8*len(b)+1)
	for _, word := range b {
		text = binary.LittleEndian.AppendUint64(text, word)
	}
	if mark {
		text = append(text, 1)
	}
	return string(text)
}
