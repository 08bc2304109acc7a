package source

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// Kind is what an Error means for the caller.
type Kind uint8

// The kinds of errors. What is said of an outcome holds whatever dies.
const (
	// Ended: the call's context has, or the Source. Sent says whether the outcome is unknown.
	Ended Kind = iota
	// Down: the group is, and the call wasn't executed, nor will be.
	Down
	// TooLarge: the request is, for the primary; it wasn't executed.
	TooLarge
	// Refused: no replica lets this client in, as Cause says; the call wasn't executed.
	Refused
	// Mismatched: a replica, or the group, speaks another protocol; the call wasn't executed.
	Mismatched
	// Lost: something that this process was told before is lost.
	Lost
	// Replaced: so was the group, before the call; it wasn't executed.
	Replaced
	// Unknown: the outcome is.
	Unknown
	// Broken: the replica, or what stands before it, breaks the protocol; the outcome is unknown.
	Broken
	// Foreign: the attempt failed as Cause says, and no replica says so.
	Foreign
)

// An Error ends a call whose last attempt didn't say how.
type Error struct {
	Kind  Kind
	Sent  bool  // with Ended: an attempt may have been executed
	Cause error // with Refused, and Foreign
	text  string
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// ErrClosed ends the calls of a Source that has ended.
var ErrClosed = errors.New("the source has ended")

var (
	// errUnknownSession ends a session that the group doesn't know (R11).
	errUnknownSession = errors.New("understudy: the group doesn't know the session any more")
	// errSession ends a stream whose session has ended, or isn't the one that was opened.
	errSession = errors.New("transport: the stream is of another session")
	// errOpened ends a stream that was welcomed before the session was open; the next Welcome will
	// open it.
	errOpened = errors.New("transport: the gate of the epoch is open: ask for the session again")
)

func isUnknownSession(over error) bool { return errors.Is(over, errUnknownSession) }

// replacedError ends the sessions of a group that was begun anew without its state.
type replacedError struct{ old, by uint64 }

func (e *replacedError) Error() string {
	return fmt.Sprintf("the group with id %x was replaced: an operator has begun it anew, as %x, without its state",
		e.old, e.by)
}

// malformedError marks what a replica should not have sent.
type malformedError struct{ err error }

func malformed(format string, args ...any) error {
	return &malformedError{fmt.Errorf(format, args...)}
}

func (e *malformedError) Error() string { return "malformed: " + e.err.Error() }
func (e *malformedError) Unwrap() error { return e.err }

func errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, text: fmt.Sprintf(format, args...)}
}

func errLost(err *orderstate.LostError) error {
	return errorf(Lost, "understudy: the session has ended: %v", err)
}

func errReplaced(why *replacedError) error {
	return errorf(Lost, "understudy: %v; what its callers have seen is lost", why)
}

func errGone(why *replacedError) error {
	return errorf(Replaced, "understudy: %v; dial again to call the new one", why)
}

func errDown(since time.Time, inSync []election.Member) error {
	names := make([]string, len(inSync))
	for i, m := range inSync {
		names[i] = m.Name
	}
	return errorf(Down,
		"understudy: the group is down since %s at the latest: none of its last in-sync replicas (%s) is registered: "+
			"they have ended, or don't reach etcd",
		since.UTC().Format(time.RFC3339), strings.Join(names, ", "))
}

func errRefused(why error) error {
	return &Error{Kind: Refused, Cause: why, text: "every replica refuses this client; nothing was sent"}
}

func errProtocol(who string, protocol uint32) error {
	return errorf(Mismatched, "understudy: %s speaks protocol %d, and this client protocol %d: they are of versions "+
		"of Understudy that don't go together", who, protocol, wire.Protocol)
}

func errTooLarge(size int, limit uint64) error {
	return errorf(TooLarge, "understudy: the request has %d bytes; at most %d are sent", size, limit)
}

// errPoison ends a call that was alone with the last of the primaries that have died with it.
func errPoison(method string, died []string) error {
	return errorf(Unknown,
		"understudy: %s isn't issued again: the primaries %s have died, one after the other, while they executed "+
			"it; its outcome is unknown", method, strings.Join(died, ", "))
}

func errDisowned(number uint64) error {
	return errorf(Unknown,
		"understudy: the group doesn't know session %d any more; the outcome of the call is unknown", number)
}

func errAnswered(number, seqNum uint64) error {
	return errorf(Broken,
		"understudy: the group says that the caller has its reply to seqNum %d of session %d, which it hasn't", seqNum,
		number)
}

func errNoHeader(method string, bad error) error {
	return errorf(Broken,
		"understudy: a reply to %s without a valid header: is the service served by a replica? (%v)", method, bad)
}

func errEnded(sent bool, why string) error { return &Error{Kind: Ended, Sent: sent, text: why} }

func errForeign(err error) error { return &Error{Kind: Foreign, Cause: err, text: err.Error()} }

// endOf turns the reason for which a session ended into what its calls are told.
func endOf(number uint64, over error) error {
	var lost *orderstate.LostError
	if errors.As(over, &lost) {
		return errLost(lost)
	}
	if why := new(replacedError); errors.As(over, &why) {
		return errReplaced(why)
	}
	return errDisowned(number)
}
