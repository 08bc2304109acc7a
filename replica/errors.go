package replica

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// gRPC statuses are made here. Unavailable and ResourceExhausted mean: not executed, and never will
// be under this seqNum.

func errStream(method string) error {
	return status.Errorf(codes.Unimplemented,
		"understudy: %s is a streaming method; streams of a replicated service aren't supported yet", method)
}

func errPlainClient(method string) error {
	return status.Errorf(codes.FailedPrecondition,
		"understudy: %s is replicated, and this call comes from a client without the middleware: dial "+
			"replicated://… with interceptor.DialOptions()", method)
}

func errRequestReplaced(method string) error {
	return status.Errorf(codes.Internal,
		"understudy: an interceptor of the server has replaced the request of %s: every replica executes the bytes "+
			"that the caller has sent; what changes requests is given to Registrar", method)
}

func errRequestTooLarge(size int) error {
	return status.Errorf(codes.ResourceExhausted, "understudy: the request has %d bytes; at most %d are taken", size,
		wire.MaxMessage)
}

func errHeader(err error) error {
	return status.Errorf(codes.InvalidArgument, "understudy: %v", err)
}

func errAnothers(s orderstate.Session) error {
	return status.Errorf(codes.PermissionDenied,
		"understudy: session %d belongs to another source: the request doesn't carry its token", s)
}

func errMinInSync(have, want int) error {
	return status.Errorf(codes.Unavailable, "understudy: %d replicas are in-sync, MinInSync is %d", have, want)
}

func errLogFull() error {
	return status.Error(codes.ResourceExhausted,
		"understudy: the log is full: the backups don't acknowledge, and can't be evicted")
}

// errShare refuses what is beyond one session's share of what all have.
func errShare(format string, args ...any) error {
	return status.Errorf(codes.ResourceExhausted, "understudy: "+format+": make fewer calls at once, or smaller ones",
		args...)
}

// refusedError is why a replica doesn't take a request, or a stream. The header in the trailer says
// so: a bare status could come from anything on the way.
type refusedError struct {
	refusal pb.Refusal
	code    codes.Code // for who isn't one of ours
	text    string
}

func (e *refusedError) Error() string { return e.text }

// GRPCStatus is the status that goes with the refusal.
func (e *refusedError) GRPCStatus() *status.Status { return status.New(e.code, e.text) }

var (
	errNotPrimary = &refusedError{pb.Refusal_REFUSAL_NOT_PRIMARY, codes.Unavailable,
		"understudy: this replica isn't the primary"}
	errUnknownSession = &refusedError{pb.Refusal_REFUSAL_UNKNOWN_SESSION, codes.FailedPrecondition,
		"understudy: the session is unknown: it was never opened, or it expired"}
	errOrderIt = &refusedError{pb.Refusal_REFUSAL_ORDER_IT, codes.Unavailable,
		"understudy: a backup can't hear the session: what is read for it must be ordered"}
	errAnswered = &refusedError{pb.Refusal_REFUSAL_ANSWERED, codes.FailedPrecondition,
		"understudy: the call is below its session's low-water mark: it was answered, or given up"}

	// of streams
	errNotFollower = &refusedError{pb.Refusal_REFUSAL_EVICTED, codes.Aborted, errEvicted.Error()}
)

// errSessionLost refuses the stream of a session that isn't open any more.
func errSessionLost(format string, s orderstate.Session) error {
	return &refusedError{pb.Refusal_REFUSAL_UNKNOWN_SESSION, codes.NotFound, fmt.Sprintf(format, s)}
}

// errProtocol refuses who speaks another protocol.
func errProtocol(who string, protocol uint32) error {
	return &refusedError{pb.Refusal_REFUSAL_PROTOCOL, codes.FailedPrecondition, fmt.Sprintf(
		"understudy: the %s speaks protocol %d, and this replica protocol %d: they are of versions of Understudy "+
			"that don't go together", who, protocol, wire.Protocol)}
}

// endStream is the status with which a stream ends. A refusal is in its trailer, too.
func endStream(stream grpc.ServerStream, err error) error {
	if r := new(refusedError); errors.As(err, &r) {
		stream.SetTrailer(refusalTrailer(r.refusal))
	}
	return statusOf(err)
}

func refusalTrailer(r pb.Refusal) metadata.MD {
	return metadata.Pairs(wire.HeaderKey, (&wire.Header{Refusal: r}).MetadataValue())
}

func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

func refusal(v orderstate.Verdict) error {
	if v == orderstate.Unknown {
		return errUnknownSession
	}
	return errAnswered
}

// The reasons for which an incarnation ends.
var (
	errStopped = errors.New("replica: stopped")
	errDeposed = errors.New("replica: deposed: another replica was elected")
	errSilent  = errors.New("replica: it isn't heard")
	errEvicted = errors.New("replica: evicted: no longer in-sync")
	errDown    = errors.New("replica: the group is down: no in-sync replica is registered: they have ended, or don't " +
		"reach etcd; it comes back when one returns")
)

// MismatchError says that this replica can't be a member of the group: it was started with
// something that the group doesn't have.
type MismatchError struct{ Field, Mine, Group string }

func mismatchedProtocol(group uint32) error {
	return &MismatchError{"protocol", strconv.Itoa(wire.Protocol), strconv.FormatUint(uint64(group), 10)}
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("replica: the group's %s is %q, this replica was started with %q", e.Field, e.Group, e.Mine)
}

// droppedError says why the primary has cut a joiner's stream.
type droppedError struct{ because error }

func (e *droppedError) Error() string { return e.because.Error() }
func (e *droppedError) Unwrap() error { return e.because }

var errPinsLog = errors.New("replica: the log that is kept for a joiner is at half of its bound")

// gaveUp is what the caller sees of a wait that has ended: its own end, or that of the incarnation,
// after which whoever leads will take the request.
func gaveUp(ctx context.Context) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return errNotPrimary
}

// errReplaced ends an incarnation whose group an operator has begun anew, without its state.
var errReplaced = errors.New(
	"replica: the group was replaced: an operator has begun it anew, without the state that this replica had",
)
