package hang

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hangs makes a process of this test's own hang.
const hangs = "UNDERSTUDY_TEST_HANGS"

func TestMain(m *testing.M) { os.Exit(Run(m)) }

// A test that hangs ends its process with a report.
func TestRun(t *testing.T) {
	if os.Getenv(hangs) != "" {
		synctest.Test(t, func(*testing.T) {
			var mu sync.Mutex
			mu.Lock()
			go func() { mu.Lock() }()
			time.Sleep(time.Hour) // fake, and never over
		})
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestRun$", "-test.timeout", (early + 100*time.Millisecond).String())
	cmd.Env = append(os.Environ(), hangs+"=1")
	out, _ := cmd.CombinedOutput() // its exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 2 ||
		!strings.HasSuffix(string(out), "   1  sync.Mutex.Lock: internal/hang.TestRun.func1.1\n") {
		t.Errorf("ended with %d: %s", code, out)
	}
}

const dump = `goroutine 1 [chan receive, 14 minutes]:
testing.(*T).Run(0xc0002b6d88, {0x1217cbf, 0x20}, 0x1249780)
	/usr/local/go/src/testing/testing.go:2109 +0xb3e

goroutine 7 [select (durable), synctest bubble 3]:
github.com/understudy-rpc/understudy/replica.(*incarnation).idler(0xc000218788)
	/home/x/replica/incarnation.go:239 +0x1b6

goroutine 8 [runnable, synctest bubble 3]:
runtime.Gosched()
	/usr/local/go/src/runtime/proc.go:391 +0x14

goroutine 11 [select (durable), 14 minutes, synctest bubble 4]:
google.golang.org/grpc.(*pickerWrapper).pick(0xc00063a950, {0x12608d0, 0xc0000d5ec0}, 0x1, {{0x1212645?, 0x0?}, {0x12608d0?, 0xc0000d5ec0?}})
	/home/x/picker_wrapper.go:123 +0x1d9
google.golang.org/grpc.(*GenericClientStream[...]).Recv(0x126b9c0)
	/home/x/stream_interfaces.go:185 +0x91
github.com/understudy-rpc/understudy/replica.(*incarnation).read(0xc00003cc88, {0x1260908, 0xc00094a3c0}, {0x126a628, 0xc000f22750}, 0x1)
	/home/x/replica/follow.go:208 +0xb1b
created by github.com/understudy-rpc/understudy/understudytest.(*Cluster).Start in goroutine 63925
	/home/x/understudytest/cluster.go:159 +0x1474

goroutine 12 [sync.Mutex.Lock, 14 minutes, synctest bubble 4]:
internal/sync.runtime_SemacquireMutex(0x0?, 0x1?, 0x1?)
	/usr/local/go/src/runtime/sema.go:95 +0x25
sync.(*Mutex).Lock(0x7f2f9578b740?)
	/usr/local/go/src/sync/mutex.go:46 +0x15
google.golang.org/grpc.(*clientStream).withRetry(0xc00038bb00, 0xc000c256e0, 0xc000e1fbc8)
	/home/x/stream.go:940 +0x5c
google.golang.org/grpc.(*GenericClientStream[...]).Send(...)
	/home/x/stream_interfaces.go:177
github.com/understudy-rpc/understudy/replica.(*incarnation).startAcks.func1()
	/home/x/replica/follow.go:308 +0x7f6

goroutine 13 [sleep (durable), synctest bubble 4]:
time.Sleep(0x1)
	/usr/local/go/src/runtime/time.go:300 +0x6f
`

func TestReport(t *testing.T) {
	var b strings.Builder
	if !report(&b, []byte(dump)) {
		t.Error("nothing hangs")
	}
	const want = `

synctest bubble 4 hangs. There wait:
   1  select (durable): google.golang.org/grpc.(*pickerWrapper).pick < replica.(*incarnation).read
   1  sleep (durable): time.Sleep
   1  sync.Mutex.Lock: google.golang.org/grpc.(*clientStream).withRetry < replica.(*incarnation).startAcks.func1
`
	if got, all := strings.CutPrefix(b.String(), dump); !all || got != want {
		t.Errorf("after all stacks (%v) it says %s", all, got)
	}

	b.Reset()
	// that is go test's to report
	if slow, _, _ := strings.Cut(dump, "goroutine 11"); report(&b, []byte(slow)) || b.Len() > 0 {
		t.Errorf("nothing hangs, and it says %s", b.String())
	}
}
