// Package route takes each RPC and stream of a group's ClientConn to the replica that it is for: it
// keeps one connection to each, and a call says by a replica's name which one it takes (Choice).
//
// It is the only package that uses gRPC's experimental packages resolver and balancer.
package route

import (
	"encoding/json"
	"errors"
	"fmt"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// Scheme is the scheme of targets.
const Scheme = "replicated"

// policy is the name of our load-balancing policy: one connection to each replica, chosen by its
// name.
const policy = "understudy"

// A Client is whom gRPC's resolver and balancer of one ClientConn serve. What is called when a
// connection changes mustn't wait.
type Client struct {
	// Group is that of a target, which is the ClientConn's authority.
	Group func(target string) (string, error)
	// Open is called when the ClientConn first connects. publish gives it the replicas, and returns
	// when they are in use.
	Open func(target string, publish func([]Address) error) error
	// Balanced is called when our load-balancing policy has had replicas.
	Balanced func()
	// Reached tells what became of connecting to a replica.
	Reached func(name, addr string, err error)
	// Reconnected is called when a replica has another connection, as one was wanted.
	Reconnected func(name string)
	// Close is called when the ClientConn is closed.
	Close func()
}

// Address is where one replica is reached, on the how-manieth connection: who wants another one
// says a higher number.
type Address struct {
	Name, Addr string
	Connection int
}

// ServiceConfig merges the user's with our policy. Our streams live long: what the user sets for
// all methods doesn't hold for them.
func ServiceConfig(user string) (string, error) {
	merged := map[string]any{}
	if user != "" {
		if err := json.Unmarshal([]byte(user), &merged); err != nil {
			return "", fmt.Errorf("transport: WithServiceConfig: %w", err)
		}
	}
	for _, key := range []string{"loadBalancingConfig", "loadBalancingPolicy"} {
		if _, ok := merged[key]; ok {
			return "", fmt.Errorf("transport: WithServiceConfig: %s would replace Understudy's own policy", key)
		}
	}
	methods, ok := merged["methodConfig"].([]any)
	if _, given := merged["methodConfig"]; given && !ok {
		return "", errors.New("transport: WithServiceConfig: methodConfig isn't a list")
	}
	merged["methodConfig"] = append(methods,
		map[string]any{"name": []any{map[string]any{"service": pb.Connection_ServiceDesc.ServiceName}}})
	merged["loadBalancingConfig"] = []any{map[string]any{policy: map[string]any{}}}
	b, err := json.Marshal(merged)
	return string(b), err
}
