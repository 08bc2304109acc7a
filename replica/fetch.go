package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has how a backup gets messages that are ordered and haven't come from their sources.

// fetcher asks the primary for messages that are ordered, and late from their source (¶47).
func (pu pursuit) fetcher(ctx context.Context, f *following) {
	since, asked := map[orderstate.MessageID]time.Duration{}, map[orderstate.MessageID]bool{}
	for {
		select {
		case <-f.lacking:
		case <-ctx.Done():
			return
		}
		pu.in.m.mu.Lock()
		if ctx.Err() != nil { // the backup may be the primary's tail by now
			pu.in.m.mu.Unlock()
			return
		}
		lacked := f.backup.Lacks(fetchBatch)
		if len(lacked) > 0 {
			signal(f.lacking) // look again, until they have come
		}
		now, before := pu.in.r.clock(), since
		since = make(map[orderstate.MessageID]time.Duration, len(lacked))
		for _, id := range lacked {
			since[id] = now
			if at, ok := before[id]; ok {
				since[id] = at
			}
		}
		late := slices.DeleteFunc(lacked, func(id orderstate.MessageID) bool { return !f.late(id, since[id], now) })
		f.missed(late, asked)
		clear(asked)
		for _, id := range late {
			asked[id] = true
		}
		r, ok := pu.in.m.view.Replica(pu.in.m.leader.Name)
		pu.in.m.mu.Unlock()
		if len(late) > 0 && ok {
			if err := pu.in.fetch(ctx, r, late); err != nil && ctx.Err() == nil {
				pu.in.log.Info("can't fetch messages", "from", r.Member.String(), "error", err)
			}
		}
		select {
		case <-time.After(fetchAfter):
		case <-ctx.Done():
			return
		}
	}
}

const fetchBatch = 1024

var errFetchStalled = fmt.Errorf("replica: nothing of the messages asked for has come for %v", silence)

// fetch gets messages from another replica, and logs them.
func (in *incarnation) fetch(ctx context.Context, from election.Replica, ids []orderstate.MessageID) error {
	peer, err := in.peers.client(from.PeerAddr)
	if err != nil {
		return err
	}
	ctx, patience, stop := withPatience(ctx, silence, &errFetchStalled)
	defer stop()
	req := &pb.FetchRequest{Group: in.group}
	for _, id := range ids {
		req.Messages = append(req.Messages, &pb.MessageID{Session: uint64(id.Session), SeqNum: uint64(id.SeqNum)})
	}
	stream, err := peer.Fetch(ctx, req)
	if err != nil {
		return err
	}
	var messages parts
	bytes := 0
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		patience.moved()
		in.m.mu.Lock()
		if f := in.m.role.logs(); f != nil {
			var what orderstate.Moved
			for _, m := range resp.GetMessages() {
				if bytes += len(m.GetMessage()); err == nil {
					var logged orderstate.Moved
					logged, err = f.logMessage(&messages, m)
					what = what.With(logged)
				}
			}
			in.m.after(moved{Moved: what})
		}
		in.m.mu.Unlock()
		if err != nil || bytes > wire.MaxMessage { // the rest is asked for again, if this backup may still hold it
			return err
		}
	}
	return nil
}
