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

// loopback says whether a listener can be reached from this host only.
func loopback(a net.Addr) bool {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.Network() == "bufconn" || a.Network() == "unix"
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
