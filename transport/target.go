package transport

import (
	"fmt"
	"net"
	"strings"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// Scheme is the scheme of targets: replicated://host:port[,host:port]/group.
const Scheme = route.Scheme

// A Target says where a group is found.
type Target struct {
	// Endpoints are those of etcd, host:port; at least one, unless WithElection is given, which may
	// do without.
	Endpoints []string
	// Group is a name that election.ValidName accepts.
	Group string
}

// ParseTarget reads the target of a ClientConn.
func ParseTarget(target string) (Target, error) {
	rest, ok := strings.CutPrefix(target, Scheme+"://")
	if !ok {
		return Target{}, fmt.Errorf("transport: the target %q isn't of the form %s://host:port[,host:port]/group",
			target, Scheme)
	}
	hosts, group, _ := strings.Cut(rest, "/")
	t := Target{Group: group}
	if err := election.ValidName(group); err != nil {
		return Target{}, fmt.Errorf("transport: the target %q: the group: %w", target, err)
	}
	if hosts == "" {
		return t, nil
	}
	t.Endpoints = strings.Split(hosts, ",")
	for _, e := range t.Endpoints {
		if _, port, err := net.SplitHostPort(e); err != nil || port == "" {
			return Target{}, fmt.Errorf("transport: the target %q: %q isn't host:port", target, e)
		}
	}
	return t, nil
}
