package replica

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// env is what each life of a replica is given: all but joins and stats is constant once Serve has
// begun.
type env struct {
	config         config
	group          string
	store          *trust.Store
	log            *logs.Logger
	clock          clock.Clock
	wall           func() time.Time
	app            *machine.App
	addr, peerAddr string // published
	maxRequest     int    // bytes that the server takes; 0: not known

	joins joins
	stats stats
}

// stats count what Status tells.
type stats struct {
	turns, duplicates, refused, forged, dropped atomic.Uint64
}

// pendingMax is pendingSourceOrderMax: at Direct and above every order is multicast at once (FIG.
// 5).
func (e *env) pendingMax() int {
	if e.config.level == understudy.Reflected {
		return pendingSourceOrderMax
	}
	return 0
}

const secretSize = 32

func newSecret() []byte {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails, says its documentation
	return b
}

// newNumber is random and never 0.
func newNumber() uint64 {
	for {
		if n := binary.LittleEndian.Uint64(newSecret()); n != 0 {
			return n
		}
	}
}

// publish finds out what to publish, given the listeners' own addresses.
func (e *env) publish(clients, peers net.Addr) error {
	e.addr = e.config.advertise
	if e.addr == "" {
		e.addr = clients.String()
		if err := dialable(e.addr); err != nil {
			return fmt.Errorf(
				"replica: the address of Serve's listener: %w: say what clients dial with replica.Advertise", err,
			)
		}
	}
	e.peerAddr = e.config.advertisePeers
	if e.peerAddr != "" {
		return nil
	}
	e.peerAddr = peers.String()
	err := dialable(e.peerAddr)
	if errors.Is(err, errUnspecified) {
		host, _, _ := net.SplitHostPort(e.addr)
		_, port, _ := net.SplitHostPort(e.peerAddr)
		e.peerAddr, err = net.JoinHostPort(host, port), nil
	}
	if err != nil {
		return fmt.Errorf(
			"replica: the address of the replicas' own listener: %w: say what they dial with replica.AdvertisePeers",
			err,
		)
	}
	return nil
}

// served is what was registered. But for optioned it is constant once Serve has begun.
type served struct {
	services  map[string]bool // replicated
	unfit     error           // why they can't be served
	connected bool            // Connection is registered, with a Registrar
	optioned  atomic.Bool     // ServerOptions was called
}

func (s *served) isUnfit(err error) {
	if s.unfit == nil {
		s.unfit = err
	}
}
