package replica

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has how a backup gets messages that are ordered and haven't come from their sources.

// fetcher asks the primary for messages that are ordered and haven't come from their source (¶47).
func (in *incarnation) fetcher(ctx context.Context) {
	for {
		select {
		case <-in.lacking:
		case <-ctx.Done():
			return
		}
		lacked := map[orderstate.MessageID]bool{}
		in.mu.Lock()
		for _, id := range in.backup.Lacks(fetchBatch) {
			lacked[id] = true
		}
		in.mu.Unlock()
		select {
		case <-time.After(fetchAfter):
		case <-ctx.Done():
			return
		}
		in.mu.Lock()
		ids := in.backup.Lacks(fetchBatch)
		if len(ids) > 0 {
			signal(in.lacking) // for those that were ordered meanwhile, or don't fit in one request
		}
		ids = slices.DeleteFunc(ids, func(id orderstate.MessageID) bool { return !lacked[id] })
		in.missed(ids)
		r, ok := in.view.Replica(in.leader.Name)
		in.mu.Unlock()
		if len(ids) == 0 || !ok {
			continue
		}
		if err := in.fetch(ctx, r, ids); err != nil && ctx.Err() == nil {
			in.log.Info("can't fetch messages", "from", r.Member.String(), "error", err)
		}
	}
}

const fetchBatch = 1024

// fetch gets messages from another replica, and logs them.
func (in *incarnation) fetch(ctx context.Context, from election.Replica, ids []orderstate.MessageID) error {
	peer, err := in.peers.client(from.PeerAddr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	req := &pb.FetchRequest{Group: in.group}
	for _, id := range ids {
		req.Messages = append(req.Messages, &pb.MessageID{Session: uint64(id.Session), SeqNum: uint64(id.SeqNum)})
	}
	stream, err := peer.Fetch(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		in.mu.Lock()
		last := in.backup.Last()
		for _, m := range resp.GetMessages() {
			if err = in.logMessage(m); err != nil {
				break
			}
		}
		if in.primary == nil {
			in.advanced(last)
		}
		in.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
