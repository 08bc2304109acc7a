package transport

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/internal/wire"
)

// This file makes every gRPC status that a caller can have from this package. Unavailable and
// ResourceExhausted mean that the call wasn't executed, and never will be.

// errGaveUp is the cause with which the context of a call ends by WithGiveUp.
var errGaveUp = errors.New("understudy: gave up")

func statusClosing() error {
	return status.Error(codes.Canceled, "grpc: the client connection is closing")
}

// statusMisused is for what a program must change.
func statusMisused(err error) error {
	return status.Error(codes.FailedPrecondition, err.Error())
}

func statusRefused(why error) error {
	if e := new(source.Error); errors.As(why, &e) {
		why = status.Error(codeOf[e.Kind], e.Error())
	}
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

// statusForeign is for an error that doesn't come from a replica's middleware. ResourceExhausted
// would say that the call wasn't executed, which nobody knows.
func statusForeign(err error) error {
	if s := status.Convert(err); s.Code() == codes.ResourceExhausted {
		return status.Errorf(codes.Internal, "understudy: the outcome is unknown: %v: %s", s.Code(), s.Message())
	}
	return err
}

// codeOf says how a call ends that the source has ended.
var codeOf = map[source.Kind]codes.Code{
	source.Down:       codes.Unavailable,
	source.TooLarge:   codes.ResourceExhausted,
	source.Lost:       codes.DataLoss,
	source.Replaced:   codes.FailedPrecondition,
	source.Mismatched: codes.FailedPrecondition,
	source.Unknown:    codes.Unknown,
	source.Broken:     codes.Internal,
}

// statusOf turns what the source says into a status.
func statusOf(ctx context.Context, e *source.Error) error {
	switch e.Kind {
	case source.Ended:
		return statusEnded(ctx, e.Sent, e.Error())
	case source.Refused:
		return statusRefused(e.Cause)
	case source.Foreign:
		return statusForeign(e.Cause)
	}
	return status.Error(codeOf[e.Kind], e.Error())
}
