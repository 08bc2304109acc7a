package orderstate

import "slices"

// window is a list that grows at its end, mostly, and is dropped from its front: amortised O(1),
// and no allocation while its length stays what it was.
type window[T any] struct {
	items []T // what was dropped, as zeros, and the list
	head  int
}

// all returns the list, until the next change.
func (w *window[T]) all() []T { return w.items[w.head:] }

func (w *window[T]) len() int { return len(w.items) - w.head }

func (w *window[T]) push(v T) { w.replace(w.len(), w.len(), v) }

// drop forgets the first n.
func (w *window[T]) drop(n int) {
	clear(w.items[w.head : w.head+n])
	w.head += n
}

// replace puts v in the place of list[i:j].
func (w *window[T]) replace(i, j int, v T) {
	if len(w.items) == cap(w.items) && w.head > w.len() { // full, and more than half of it dropped
		n := copy(w.items, w.all())
		clear(w.items[n:])
		w.items, w.head = w.items[:n], 0
	}
	w.items = slices.Replace(w.items, w.head+i, w.head+j, v)
}

// filter keeps what keep says.
func (w *window[T]) filter(drop func(i int, v T) bool) {
	list, n := w.all(), 0
	for i, v := range list {
		if !drop(i, v) {
			list[n] = v
			n++
		}
	}
	clear(list[n:])
	w.items = w.items[:w.head+n]
}

func (w *window[T]) clone() window[T] { return window[T]{items: slices.Clone(w.all())} }
