package replica

import (
	"context"
	"log/slog"

	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// This file has what one session may have of what all share: one that takes too much costs only
// itself.

// fits says whether a session that has so much of a bound for all, of which so much is taken, may
// have more. Its share is a sixteenth of the bound, and less when little is free, so that there is
// something left for those who come last. Who has nothing may have one thing that is larger, while
// much is free.
func fits(bound, taken, mine, more int) bool {
	free := bound - taken
	return mine+more <= min(bound/16, free/8) || mine == 0 && more <= free-bound*3/8
}

// keeps counts what a stream keeps of a frame that isn't whole yet. It is of the log's bytes, and
// of its session's share; beyond that such a frame is dropped, as one that is whole would be.
func (a *attachment) keeps(frames *wire.Assembler) {
	m := a.m
	m.sources.partial -= a.partial
	a.partial = 0
	held := frames.Held()
	if held == 0 {
		return
	}
	if h := m.history(); !fits(maxLogBytes, h.Bytes()+m.sources.partial, h.Of(a.session).WaitingBytes, held) {
		a.drops(held)
		frames.Drop()
		return
	}
	a.partial = held
	m.sources.partial += held
}

// logFrame logs a message for its order to come. The primary has its messages from the RPCs. Frames
// beyond the session's share of the log are dropped: what is ordered of them is fetched. But one
// that was announced is always kept: the order waits for it. It says false of one that was dropped.
func (a *attachment) logFrame(msg orderstate.Message) bool {
	m := a.m
	f := m.role.logs()
	if f == nil {
		return true
	}
	h := f.backup.History()
	old, again := h.Has(msg.MessageID)
	of, more := h.Of(msg.Session), msg.Size-old.Size
	inShare := again || of.Waiting < maxOutstanding && fits(maxLog, h.Held(), of.Waiting, 1)
	if more > 0 {
		inShare = inShare && fits(maxLogBytes, h.Bytes()+m.sources.partial, of.WaitingBytes+a.partial-old.Size, more)
	}
	if !inShare && !f.backup.Announces(msg) {
		a.drops(msg.Size)
		return false
	}
	_, logged := f.backup.Message(msg)
	m.after(moved{Moved: logged})
	return true
}

// drops notes that a frame was dropped, and says so once for each stream.
func (a *attachment) drops(size int) {
	m := a.m
	m.r.stats.dropped.Add(1)
	if a.dropped {
		return
	}
	a.dropped = true
	of := m.history().Of(a.session)
	m.rarely(slog.LevelWarn,
		"dropped a request that nobody has ordered, beyond its session's share of the log: what is ordered is fetched",
		"session", uint64(a.session), "bytes", size, "waiting", of.Waiting, "waitingBytes", of.WaitingBytes,
		"share", maxOutstanding, "shareBytes", maxLogBytes/16, "log", m.history().Held(), "logBytes",
		m.history().Bytes()+m.sources.partial)
}

// awaitReplies waits until the source of a session has declared that it has some of its replies,
// which waiting bounds. Whether this is the primary yet, its turn says.
func (m *member) awaitReplies(ctx, waiting context.Context, s orderstate.Session) error {
	own, all, within := m.machine.AwaitShare(waiting, s)
	switch {
	case within:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	default:
		return errShare(
			"%d bytes of replies are kept for the session, of %d for all, since it hasn't declared that it has "+
				"them; its share is a sixteenth of %d, or less while others have much", own, all, machine.MaxReplyBytes,
		)
	}
}
