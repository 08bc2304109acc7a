package election

import (
	"cmp"
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// An etcd client gives its requests to the members in turn, so one that accepts them and never
// answers (it is stopped, or its disk hangs) takes every second or third request, until its
// connection is given up 12 s later, or for ever. So whatever is asked is asked again when it isn't
// answered soon: twice, so that not both are the one member's. Later repetitions are single, each
// after about twice as long as the one before, so that a store which is slow for all isn't given
// much more to do. The requests before stay outstanding: a store that is slow gives no fewer
// answers by that.
const (
	// askAgain is how long the first request may take before others are made; these may take twice
	// as long, and so on. Each pause is jittered, so that those who were held up together don't
	// come back together.
	askAgain = 100 * time.Millisecond
	// askLimit ends each request.
	askLimit = 5 * time.Second
	// askMost bounds the requests that are outstanding for one question; beyond, the oldest are
	// given up.
	askMost = 7
)

// verdict says what an answer is worth.
type verdict int

const (
	settled verdict = iota // it is what was asked for
	final                  // it isn't, and no other request would have a better one
	open                   // another request may
)

// asked is how a question ended.
type asked struct {
	begun, final int // requests, and those of them that have ended as final
}

// ask makes a request until an answer settles it, and returns that one; else the last one, when no
// request is outstanding, or some have had their time since one was final. Requests end with ctx,
// and so does ask.
func ask[T any](
	ctx context.Context, request func(context.Context) (T, error), judge func(T, error) verdict,
) (answer T, how asked, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		answer T
		err    error
		of     int  // the how-manieth request
		ended  bool // by this function
	}
	results, over := make(chan result), make(chan struct{})
	defer close(over)
	outstanding := map[int]context.CancelFunc{}
	oldest := 0
	begin := func() {
		for ; len(outstanding) >= askMost; oldest++ {
			if giveUp := outstanding[oldest]; giveUp != nil {
				giveUp()
				delete(outstanding, oldest)
			}
		}
		own, giveUp := context.WithTimeout(ctx, askLimit)
		of := how.begun
		outstanding[of] = giveUp
		how.begun++
		go func() {
			defer giveUp()
			answer, err := request(own)
			select {
			case results <- result{answer, err, of, own.Err() != nil && ctx.Err() == nil}:
			case <-over:
			}
		}()
	}
	begin()
	patience := askAgain
	timer := time.NewTimer(jitter(patience))
	defer timer.Stop()
	for {
		var done <-chan struct{} // of ctx, when no request tells its end
		if len(outstanding) == 0 {
			done = ctx.Done()
		}
		select {
		case <-done:
			return answer, how, cmp.Or(err, ctx.Err())
		case r := <-results:
			delete(outstanding, r.of)
			v := judge(r.answer, r.err)
			if v == settled {
				return r.answer, how, r.err
			}
			if r.ended { // it says nothing, and others will be asked
				continue
			}
			answer, err = r.answer, r.err
			if v == final {
				how.final++
				timer.Reset(askAgain)
			}
			if len(outstanding) == 0 {
				return answer, how, err
			}
		case <-timer.C:
			if how.final > 0 {
				return answer, how, err
			}
			if how.begun == 1 {
				begin()
			}
			begin()
			patience = min(2*patience, time.Second)
			timer.Reset(jitter(patience))
		}
	}
}

// fetch asks for what a repetition doesn't change.
func fetch[T any](ctx context.Context, request func(context.Context) (T, error)) (T, error) {
	answer, _, err := ask(ctx, request, func(_ T, err error) verdict {
		switch {
		case err == nil:
			return settled
		case refused(err):
			return final
		default:
			return open
		}
	})
	return answer, err
}

// get reads keys, linearizably.
func (e *etcd) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return fetch(ctx, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return e.client.Get(ctx, key, opts...)
	})
}

// grant makes a lease. One that nobody learns of, since its request was made again, expires by
// itself.
func (e *etcd) grant(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
	return fetch(ctx, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		return e.client.Grant(ctx, int64(e.ttl/time.Second))
	})
}

func (e *etcd) revoke(ctx context.Context, id clientv3.LeaseID) error {
	_, err := fetch(ctx, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return e.client.Revoke(ctx, id)
	})
	return err
}

// renew keeps a lease alive for another TTL. The client's own way is one stream for all leases, on
// one member, and its KeepAliveOnce repeats without a pause what no member takes.
func (e *etcd) renew(ctx context.Context, id clientv3.LeaseID) error {
	leases := pb.NewLeaseClient(e.client.ActiveConnection())
	_, err := fetch(ctx, func(ctx context.Context) (*pb.LeaseKeepAliveResponse, error) {
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		stream, err := leases.LeaseKeepAlive(ctx)
		if err != nil {
			return nil, clientv3.ContextError(ctx, err)
		}
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
			return nil, clientv3.ContextError(ctx, err)
		}
		resp, err := stream.Recv()
		switch {
		case err != nil:
			return nil, clientv3.ContextError(ctx, err)
		case resp.TTL <= 0:
			return nil, rpctypes.ErrLeaseNotFound
		}
		return resp, nil
	})
	return err
}
