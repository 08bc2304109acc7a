package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// This file makes every gRPC status that a caller can have from this package. Unavailable and
// ResourceExhausted mean that the call wasn't executed, and never will be.

// errGaveUp is the cause with which the context of a call ends by WithGiveUp.
var errGaveUp = errors.New("understudy: gave up")

// errUnknownSession ends a session that the group doesn't know (R11).
var errUnknownSession = errors.New("understudy: the group doesn't know the session any more")

func statusClosing() error {
	return status.Error(codes.Canceled, "grpc: the client connection is closing")
}

// statusMisused is for what a program must change.
func statusMisused(err error) error {
	return status.Error(codes.FailedPrecondition, err.Error())
}

func statusRefused(why error) error {
	return status.Errorf(status.Code(why), "understudy: every replica refuses this client; nothing was sent (%v)",
		status.Convert(why).Message())
}

func statusStreaming(method string) error {
	return status.Errorf(codes.Unimplemented,
		"understudy: %s is a streaming method of a replicated service: these aren't built yet; a service that each "+
			"replica serves for itself is named by WithUnreplicated", method)
}

func statusCodec(method string) error {
	return status.Errorf(codes.Unimplemented,
		"understudy: %s is called with a codec of its own; replicated calls use protobuf", method)
}

func statusMarshal(err error) error {
	return status.Errorf(codes.Internal, "understudy: marshalling the request: %v", err)
}

func statusMethod(method string) error {
	return status.Errorf(codes.Unimplemented,
		"understudy: %.100q is no method's name: it isn't UTF-8, or has more than %d bytes", method, wire.MaxMethod)
}

func statusTooLarge(size, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "understudy: the request has %d bytes; at most %d are sent", size,
		limit)
}

// statusEnded is the end of a call by its own context, or by WithGiveUp. why says what it waited
// for.
func statusEnded(ctx context.Context, sent bool, why string) error {
	outcome := "nothing was sent"
	if sent {
		outcome = "the outcome is unknown"
	}
	if errors.Is(context.Cause(ctx), errGaveUp) {
		return status.Errorf(codes.Unknown, "understudy: gave up on a call without a deadline; %s (%s)", outcome, why)
	}
	return status.Errorf(status.FromContextError(ctx.Err()).Code(), "understudy: %v; %s (%s)", ctx.Err(), outcome, why)
}

func statusLost(err *orderstate.LostError) error {
	return status.Errorf(codes.DataLoss, "understudy: the session has ended: %v", err)
}

func statusReplaced(why *replacedError) error {
	return status.Errorf(codes.DataLoss, "understudy: %v; what its callers have seen is lost", why)
}

func statusGone(why *replacedError) error {
	return status.Errorf(codes.FailedPrecondition, "understudy: %v; dial again to call the new one", why)
}

func statusDown(since time.Time, inSync string) error {
	return status.Errorf(codes.Unavailable,
		"understudy: the group is down since %s at the latest: none of its last in-sync replicas (%s) is alive",
		since.UTC().Format(time.RFC3339), inSync)
}

// statusPoison ends a call that was alone with the last of the primaries that have died with it.
func statusPoison(method string, died []string) error {
	return status.Errorf(codes.Unknown,
		"understudy: %s isn't issued again: the primaries %s have died, one after the other, while they executed "+
			"it; its outcome is unknown", method, strings.Join(died, ", "))
}

func statusUnknownSession(number uint64) error {
	return status.Errorf(codes.Unknown,
		"understudy: the group doesn't know session %d any more; the outcome of the call is unknown", number)
}

func statusAnswered(number, seqNum uint64) error {
	return status.Errorf(codes.Internal,
		"understudy: the group says that the caller has its reply to seqNum %d of session %d, which it hasn't", seqNum,
		number)
}

func statusNoHeader(method string, err error) error {
	return status.Errorf(codes.Internal,
		"understudy: a reply to %s without a valid header: is the service served by a replica? (%v)", method, err)
}

// statusForeign is for an error that doesn't come from a replica's middleware. ResourceExhausted
// would say that the call wasn't executed, which nobody knows.
func statusForeign(err error) error {
	if s := status.Convert(err); s.Code() == codes.ResourceExhausted {
		return status.Errorf(codes.Internal, "understudy: the outcome is unknown: %v: %s", s.Code(), s.Message())
	}
	return err
}

// endOf turns the reason for which a session ended into what its calls are told.
func endOf(s *session) error {
	var lost *orderstate.LostError
	if errors.As(s.over, &lost) {
		return statusLost(lost)
	}
	if why := new(replacedError); errors.As(s.over, &why) {
		return statusReplaced(why)
	}
	return statusUnknownSession(s.number)
}

// malformedError marks what a peer should not have sent.
type malformedError struct{ err error }

func malformed(format string, args ...any) error {
	return &malformedError{fmt.Errorf(format, args...)}
}

func (e *malformedError) Error() string { return "malformed: " + e.err.Error() }
func (e *malformedError) Unwrap() error { return e.err }
