//go:build !linux

package main

import "os/exec"

// dieWithParent: elsewhere the end of its stdin tells a child.
func dieWithParent(*exec.Cmd) {}
