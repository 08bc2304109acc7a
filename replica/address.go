package replica

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// This file decides which addresses a replica publishes: those that its clients and the other
// replicas dial.

var errUnspecified = errors.New("it is every address of whoever dials it, and so nobody's")

// dialable returns an error unless addr is host:port, of one host.
func dialable(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q isn't host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q isn't host:port: its port isn't a number from 1 to 65535", addr)
	}
	if host == "" || strings.ContainsAny(host, "/ \t") {
		return fmt.Errorf("%q isn't host:port: it names no host", addr)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsUnspecified() {
		return fmt.Errorf("%q can't be dialled from another host: %w", addr, errUnspecified)
	}
	return nil
}

// publish finds out what to publish, given the listeners' own addresses.
func (r *Replica) publish(clients, peers net.Addr) error {
	r.addr = r.config.advertise
	if r.addr == "" {
		r.addr = clients.String()
		if err := dialable(r.addr); err != nil {
			return fmt.Errorf(
				"replica: the address of Serve's listener: %w: say what clients dial with replica.Advertise", err,
			)
		}
	}
	r.peerAddr = r.config.advertisePeers
	if r.peerAddr != "" {
		return nil
	}
	r.peerAddr = peers.String()
	err := dialable(r.peerAddr)
	if errors.Is(err, errUnspecified) {
		host, _, _ := net.SplitHostPort(r.addr)
		_, port, _ := net.SplitHostPort(r.peerAddr)
		r.peerAddr, err = net.JoinHostPort(host, port), nil
	}
	if err != nil {
		return fmt.Errorf(
			"replica: the address of the replicas' own listener: %w: say what they dial with replica.AdvertisePeers",
			err,
		)
	}
	return nil
}
