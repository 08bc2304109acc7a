package orderstate

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
)

// FencedError says that something came from below an epoch that was acknowledged (R9).
type FencedError struct{ Epoch, Acknowledged Epoch }

func (e *FencedError) Error() string {
	return fmt.Sprintf("orderstate: epoch %d is over: %d is acknowledged", e.Epoch, e.Acknowledged)
}

// DivergedError says that this replica holds, and may have executed, another message at an orderNum
// than its group does, or that the group's next can't follow what it holds; it must join again as a
// new incarnation.
type DivergedError struct{ OrderNum OrderNum }

func (e *DivergedError) Error() string {
	return fmt.Sprintf("orderstate: this replica holds another message at orderNum %d than its group", e.OrderNum)
}

// UnstableError says that an epoch begins at or below what was stable in an earlier one: it was
// begun by a replica that wasn't in-sync, as after a restored store. Nothing was changed, and
// nothing held is void by it.
type UnstableError struct {
	Stable OrderNum
	In     Epoch
}

func (e *UnstableError) Error() string {
	return fmt.Sprintf(
		"orderstate: orderNum %d was stable in epoch %d, and a later epoch begins below: who has begun it wasn't "+
			"in-sync", e.Stable, e.In,
	)
}

func sorted[T cmp.Ordered](seq iter.Seq[T]) []T { return slices.Sorted(seq) }
