package replica

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/understudy-rpc/understudy/election"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has how a name is taken over from a process that is gone.

// isAlive asks at the address of who holds this replica's name whether that incarnation is still
// there. It is gone, which is nil, only if another incarnation of that name answers there, in the
// group's name and with its credentials: an address has one process. That may be this process
// itself, if its address is fixed. Nothing else proves it: a refused connection, a failed handshake
// and silence can come from a firewall, other credentials, or another machine's loopback. Then
// there is the end of its lease.
func (in *incarnation) isAlive(r election.Replica) (alive bool, unproved error) {
	if host, _, err := net.SplitHostPort(r.PeerAddr); err != nil || onlyHere(host) && r.Host != thisHost() {
		return false, fmt.Errorf("replica: nothing is said about another machine by what answers here, at %s",
			r.PeerAddr)
	}
	peer, err := in.peers.client(r.PeerAddr)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(in.ctx, silence)
	defer cancel()
	resp, err := peer.Hears(ctx, &pb.HearsRequest{})
	switch {
	case err != nil:
		return false, fmt.Errorf("replica: asking at %s: %w", r.PeerAddr, err)
	case resp.GetGroupName() != in.r.group || resp.GetReplica() != r.Name:
		return false, fmt.Errorf("replica: at %s answers %s of group %s", r.PeerAddr, resp.GetReplica(),
			resp.GetGroupName())
	}
	return resp.GetIncarnation() == r.Incarnation, nil
}

// onlyHere says whether a host means each machine itself.
func onlyHere(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// thisHost tells this machine's boot, and this process's network namespace, from all others: a
// loopback address is the same place within one only. Elsewhere than on Linux it is the host's
// name.
var thisHost = sync.OnceValue(func() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	namespace, nsErr := os.Readlink("/proc/self/ns/net")
	if err != nil || nsErr != nil {
		name, _ := os.Hostname()
		boot, namespace = []byte(name), ""
	}
	sum := sha256.Sum256(append(boot, namespace...))
	return hex.EncodeToString(sum[:8])
})
