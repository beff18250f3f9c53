package plan

// matching gives units of groups on its left to groups on its right that have
// room for them. The units of a group are alike, so only their number counts, and
// the work grows with the number of groups, not with pairs of units.
//
// It finds augmenting paths: a unit for which no adjacent group has room moves
// earlier ones on to groups that they fit in as well. What is placed once stays
// placed, though not where it was. Placing units one after the other therefore
// places as many as can be placed at all, and of all sets of that size the one that
// is best in the order of placing (the sets that can be placed are the independent
// sets of a transversal matroid, for which being greedy is exact).
type matching struct {
	adjacent []bitset // The right groups that each left group fits in.
	room     []int    // What each right group has left.
	open     bitset   // The right groups that have room.
	flow     [][]int  // Units of left in right, by left and right.
	users    []bitset // The left groups that have units in each right group.
	closed   bitset   // Left groups from which no room can be reached any more.
	scratch  search
}

// search is what one search for room needs, kept for the next.
type search struct {
	seenLeft, seenRight bitset
	through             []int // The right group that a left one was reached through.
	from                []int // The left group that a right one was reached from.
	queue               []int
}

func newMatching(adjacent []bitset, room []int) *matching {
	m := &matching{
		adjacent: adjacent, room: room,
		open: newBitset(len(room)), closed: newBitset(len(adjacent)),
		flow: make([][]int, len(adjacent)), users: make([]bitset, len(room)),
		scratch: search{
			seenLeft: newBitset(len(adjacent)), seenRight: newBitset(len(room)),
			through: make([]int, len(adjacent)), from: make([]int, len(room)),
		},
	}
	for right, n := range room {
		m.users[right] = newBitset(len(adjacent))
		if n > 0 {
			m.open.add(right)
		}
	}
	cells := make([]int, len(adjacent)*len(room))
	for left := range m.flow {
		m.flow[left], cells = cells[:len(room)], cells[len(room):]
	}
	return m
}

// place finds a place for one more unit of the left group, and reports whether
// there is one.
func (m *matching) place(left int) bool {
	if m.closed.has(left) {
		return false
	}
	if right := m.adjacent[left].firstIn(m.open); right >= 0 {
		m.put(left, right)
		m.take(right)
		return true
	}
	return m.search(left)
}

// put counts a unit of left in right.
func (m *matching) put(left, right int) {
	m.flow[left][right]++
	m.users[right].add(left)
}

// lift takes a unit of left out of right.
func (m *matching) lift(left, right int) {
	m.flow[left][right]--
	if m.flow[left][right] == 0 {
		m.users[right].remove(left)
	}
}

// take uses up one unit of room.
func (m *matching) take(right int) {
	m.room[right]--
	if m.room[right] == 0 {
		m.open.remove(right)
	}
}

// search looks, breadth first, for a chain of moves that ends where there is room.
func (m *matching) search(start int) bool {
	at := &m.scratch
	clear(at.seenLeft)
	clear(at.seenRight)
	at.seenLeft.add(start)
	at.queue = append(at.queue[:0], start)
	end := -1
	for i := 0; i < len(at.queue) && end < 0; i++ {
		end = m.spread(at.queue[i])
	}
	if end < 0 {
		// No path from any group met here will ever open: later moves stay among groups
		// outside of what was seen, or lead into it.
		for _, left := range at.queue {
			m.closed.add(left)
		}
		return false
	}
	m.take(end)
	for right := end; ; {
		left := at.from[right]
		m.put(left, right)
		if left == start {
			return true
		}
		right = at.through[left]
		m.lift(left, right)
	}
}

// spread goes one step on from a left group: to the right groups it fits in, and to
// the users of those. It returns the first that has room, or -1.
func (m *matching) spread(left int) int {
	at := &m.scratch
	end := -1
	m.adjacent[left].each(at.seenRight, func(right int) bool {
		at.seenRight.add(right)
		at.from[right] = left
		if m.open.has(right) {
			end = right
			return false
		}
		m.users[right].each(at.seenLeft, func(user int) bool {
			at.seenLeft.add(user)
			at.through[user] = right
			at.queue = append(at.queue, user)
			return true
		})
		return true
	})
	return end
}
