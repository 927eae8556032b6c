// Sequence makes libcni's calls for containers in the order in which its input says, as a runtime would that links
// libcni: what cnitool cannot do, which has one container at a time and names no valid attachments for GC.
//
//	CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d sequence NETWORK <steps
//
// Each line of the input is a step in JSON, each line of the output what came of it, in the same order: `error` is
// empty where all went well, `result` is that of an ADD. After an error it goes on, as runtimes do with other pods;
// the exit status tells of input that it could not understand only.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// pause is what lies between two looks at a network that is not ready yet.
const pause = 50 * time.Millisecond

// step is one thing that a runtime does with a network.
type step struct {
	// Verb is status, gc, add, check or del.
	Verb string `json:"verb"`
	// Patience is the time in seconds for which status is asked again until it is well.
	Patience float64 `json:"patience"`
	// Valid are the attachments that gc has to keep.
	Valid []types.GCAttachment `json:"valid"`
	// Container, Netns and Interface name an attachment.
	Container string `json:"container"`
	Netns     string `json:"netns"`
	Interface string `json:"interface"`
	// Arguments become CNI_ARGS.
	Arguments [][2]string `json:"arguments"`
	// Capabilities become runtimeConfig.
	Capabilities map[string]any `json:"capabilities"`
	// Cached: configuration, arguments and capabilities are those of the container's add, whatever there is now.
	Cached bool `json:"cached"`
}

// outcome is what came of a step.
type outcome struct {
	Verb   string       `json:"verb"`
	Error  string       `json:"error"`
	Tries  int          `json:"tries,omitempty"`
	Result types.Result `json:"result,omitempty"`
}

// runtime is the part of a container runtime that knows one network.
type runtime struct {
	cni     *libcni.CNIConfig
	folder  string
	network string
}

func main() {
	if len(os.Args) != 2 {
		fail(errors.New("usage: sequence NETWORK <steps"))
	}
	found := runtime{
		cni:     libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil),
		folder:  os.Getenv("NETCONFPATH"),
		network: os.Args[1],
	}
	input := json.NewDecoder(os.Stdin)
	input.DisallowUnknownFields()
	output := json.NewEncoder(os.Stdout)
	for {
		var next step
		if err := input.Decode(&next); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			fail(err)
		}
		done := outcome{Verb: next.Verb}
		if err := found.perform(context.Background(), next, &done); err != nil {
			done.Error = err.Error()
		}
		if err := output.Encode(done); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "sequence:", err)
	os.Exit(2)
}

func (r *runtime) perform(ctx context.Context, next step, done *outcome) error {
	list, conf, err := r.configuration(next)
	if err != nil {
		return err
	}
	switch next.Verb {
	case "status":
		deadline := time.Now().Add(time.Duration(next.Patience * float64(time.Second)))
		for {
			done.Tries++
			err := r.cni.GetStatusNetworkList(ctx, list)
			if err == nil || time.Now().After(deadline) {
				return err
			}
			time.Sleep(pause)
		}
	case "gc":
		return r.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: next.Valid})
	case "add":
		done.Result, err = r.cni.AddNetworkList(ctx, list, conf)
		return err
	case "check":
		return r.cni.CheckNetworkList(ctx, list, conf)
	case "del":
		return r.cni.DelNetworkList(ctx, list, conf)
	}
	return fmt.Errorf("there is no verb %q", next.Verb)
}

// configuration is what there is now, or what the container was added with.
func (r *runtime) configuration(next step) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	conf := &libcni.RuntimeConf{
		ContainerID:    next.Container,
		NetNS:          next.Netns,
		IfName:         next.Interface,
		Args:           next.Arguments,
		CapabilityArgs: next.Capabilities,
	}
	if !next.Cached {
		list, err := libcni.LoadConfList(r.folder, r.network)
		return list, conf, err
	}
	// The cache goes by names alone: no list that is in force needs to exist any more.
	body, known, err := r.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: r.network}, conf)
	if err != nil {
		return nil, nil, err
	}
	if body == nil {
		return nil, nil, fmt.Errorf("container %s was never added", next.Container)
	}
	list, err := libcni.ConfListFromBytes(body)
	return list, known, err
}
