package simulation

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// TestRegressions plays the plans that have found something: README.md has the table.
func TestRegressions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no plans", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var p Plan
			d := json.NewDecoder(bytes.NewReader(b))
			d.DisallowUnknownFields()
			if err := d.Decode(&p); err != nil {
				t.Fatal(err)
			}
			_, found := play(t, p, nil)
			for _, f := range found {
				t.Error(f)
			}
		})
	}
}

// lines is what was logged: replicas go on logging while a test looks.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestGroupDown: when all in-sync replicas die at once, no replica that comes back may lead, since
// none has what callers have seen: the group is down, and says so: to callers, too, at once, of
// calls that were never sent.
func TestGroupDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		c := understudytest.New(t, 3, Register(Plan{}), understudytest.Logger(slog.New(slog.NewTextHandler(&log, nil))))
		r := &run{plan: Plan{}, cluster: c, ctx: t.Context(), began: time.Now()}
		conn := c.Dial("client0")
		if m := r.call(conn, Call{Request: Request{ID: "before", Op: "add", A: 1}}, time.Second); m.Err != nil {
			t.Fatal(m.Err)
		}
		for i := range 3 {
			c.Crash(i)
		}
		for i := range 3 {
			c.Kill(i)
			c.Start(i)
		}
		time.Sleep(10 * time.Second)
		m := r.call(conn, Call{Request: Request{ID: "after", Op: "add", A: 1}}, 5*time.Second)
		if status.Code(m.Err) != codes.Unavailable || m.Ended != m.Began ||
			!strings.Contains(m.Err.Error(), "replica0, replica1, replica2") {
			t.Errorf("a call of a group that is down: %v", m)
		}
		for i := range 3 {
			if s := c.Replica(i).Status(); s.Role != replica.Joining || s.Executed != 0 {
				t.Errorf("replica %d: %+v", i, s)
			}
		}
		if said := "no in-sync replica"; !strings.Contains(log.String(), said) {
			t.Errorf("nobody has said that %s is alive", said)
		}
	})
}

// TestReplyComesTooLate: the primary is parted from the rest with a client, and stands still while
// a reply to it is on its way, until its successor's gate is open: R10 is all that keeps the client
// from accepting it. The seeds meet this rarely.
func TestReplyComesTooLate(t *testing.T) {
	const moments = 2
	late := 0
	for k := range moments {
		p := Plan{
			Seed: uint64(1 + k), Replicas: 3, Clients: 2, Workers: 2, Workload: "register", Style: Anything, Quiet: -1,
			MinInSync: 1,
			Load:      6 * time.Second, Heal: 6 * time.Second, Pause: 20 * time.Millisecond,
			Faults: []Fault{
				{At: 500 * time.Millisecond, For: 5 * time.Second, Kind: "partition", Way: "both",
					Hosts: []string{"primary", "client0"}, Store: true},
				{At: 700*time.Millisecond + time.Duration(k)*71*time.Microsecond, For: 4500 * time.Millisecond,
					Kind: "pause", Hosts: []string{"primary"}},
			},
		}
		rec, found := play(t, p, nil)
		late += rec.Coverage.Counts()["a reply was too late (R10)"]
		for _, f := range found {
			t.Error(f)
		}
	}
	if late == 0 {
		t.Error("no reply came too late")
	}
}
