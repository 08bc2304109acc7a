// Package journal is the replicated service of the end-to-end tests, and how they speak with the
// processes that run it.
//
// The service writes down each call, in the order of the turns, and its reply says at which place:
// so a test sees exactly what was lost, what was done twice, and whether replicas differ.
//
//	place, err := journal.NewClient(conn).Append(ctx, journal.Entry{Client: "x", Call: 17}, "")
package journal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/testservice"
)

// An Entry is one call of one client, as it identifies itself.
type Entry struct {
	Client string `json:"c"`
	Call   uint64 `json:"n"`
}

func (e Entry) String() string { return e.Client + "/" + strconv.FormatUint(e.Call, 10) }

func parseEntry(s string) (Entry, error) {
	client, call, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(call, 10, 64)
	if !ok || err != nil || client == "" || n == 0 {
		return Entry{}, fmt.Errorf("journal: %.50q is no entry", s)
	}
	return Entry{client, n}, nil
}

// A Digest says what a replica's state is: two that are equal hold the same entries, made at the
// same times, with the same random numbers.
type Digest [sha256.Size]byte

// A Journal is the service and its state. The zero value is empty, and ready to be registered.
type Journal struct {
	mu    sync.Mutex // guards state: turns are serial, but a dump is asked for at any time
	state state
}

// state is what a snapshot holds. Entries only grow, and Ballast never changes, so that a snapshot
// copies neither.
type state struct {
	Digest   Digest
	Last     int64 // when the last turn was, in microseconds
	Backward int   // turns that were before the one before them
	Entries  []Entry
	Ballast  []byte
}

// New returns a journal that drags so many bytes along, which are the same in every journal.
func New(ballast int) *Journal {
	j := &Journal{}
	if ballast > 0 {
		j.state.Ballast = make([]byte, ballast)
		for i := range j.state.Ballast {
			j.state.Ballast[i] = byte(i * i >> 3)
		}
	}
	return j
}

// append takes a turn: what it does depends on the state, the request, and the turn's own time and
// random numbers.
func (j *Journal) append(ctx context.Context, e Entry, padding string) (place uint64) {
	now, random := understudy.Now(ctx).UnixMicro(), understudy.Rand(ctx).Uint64()
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &j.state
	b := append([]byte(nil), s.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(now))
	b = binary.BigEndian.AppendUint64(b, random)
	b = append(b, e.String()...)
	b = append(append(b, ' '), padding...)
	s.Digest = sha256.Sum256(b)
	if now < s.Last {
		s.Backward++
	}
	s.Last = now
	s.Entries = append(s.Entries, e)
	return uint64(len(s.Entries))
}

// A Dump is a journal at one moment.
type Dump struct {
	Digest   Digest  `json:"digest"`
	Backward int     `json:"backward"`
	Entries  []Entry `json:"entries"`
	Ballast  int     `json:"ballast"` // bytes
	Sum      uint32  `json:"sum"`     // of the ballast
}

// Dump returns the journal as it is now. The entries are not copied.
func (j *Journal) Dump() Dump {
	j.mu.Lock()
	s := j.state
	j.mu.Unlock()
	return Dump{s.Digest, s.Backward, s.Entries, len(s.Ballast), crc32.ChecksumIEEE(s.Ballast)}
}

// Snapshot implements replica.Snapshotter.
func (j *Journal) Snapshot() (write func(io.Writer) error, err error) {
	j.mu.Lock()
	s := j.state
	j.mu.Unlock()
	return func(w io.Writer) error { return gob.NewEncoder(w).Encode(s) }, nil
}

// Restore implements replica.Snapshotter.
func (j *Journal) Restore(r io.Reader) error {
	var s state
	if err := gob.NewDecoder(r).Decode(&s); err != nil {
		return fmt.Errorf("journal: restore: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state = s
	return nil
}

const method = "/understudy.e2e.Journal/Append"

var desc = testservice.Describe("understudy.e2e.Journal", testservice.Unary("Append", (*Journal).serveAppend))

// Register registers the journal's service, as generated code would.
func (j *Journal) Register(s grpc.ServiceRegistrar) { s.RegisterService(&desc, j) }

func (j *Journal) serveAppend(ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.UInt64Value, error) {
	id, padding, _ := strings.Cut(in.GetValue(), " ")
	e, err := parseEntry(id)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return wrapperspb.UInt64(j.append(ctx, e, padding)), nil
}

// Client calls the service.
type Client struct{ conn grpc.ClientConnInterface }

// NewClient returns a client that calls over conn.
func NewClient(conn grpc.ClientConnInterface) Client { return Client{conn} }

// Append writes down an entry, and returns its place, from 1. The padding makes the request larger.
func (c Client) Append(ctx context.Context, e Entry, padding string) (place uint64, err error) {
	out := new(wrapperspb.UInt64Value)
	if err := c.conn.Invoke(ctx, method, wrapperspb.String(e.String()+" "+padding), out); err != nil {
		return 0, err
	}
	return out.GetValue(), nil
}
