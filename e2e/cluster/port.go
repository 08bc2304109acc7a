package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// The ports that are kept for one name while it has no process are below those that the kernel
// gives to whoever asks for any: nobody takes them meanwhile.
const (
	firstPort = 12000
	ports     = 18000
)

var nextPort atomic.Uint32 // counted from firstPort

func init() { nextPort.Store(rand.Uint32N(ports)) } // other test processes have others

// freePort returns a port of the loopback that nobody listens on, another one each time.
func freePort() (int, error) {
	for range ports {
		port := firstPort + int(nextPort.Add(1)%ports)
		lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, lis.Close()
		}
	}
	return 0, errors.New("no free port for a replica")
}
