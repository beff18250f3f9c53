package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// LiveObject is an object that the API server still holds.
type LiveObject struct {
	Group     string
	Resource  string
	Namespace string
	Name      string
	UID       string
	OwnerUIDs []string
	Labels    map[string]string
	Created   time.Time
	Deleting  bool
}

// LiveAgent is a registration that the service still lists.
type LiveAgent struct {
	Pool string
	ID   int64
	Name string
}

// ListObjects lists every object of every kind that the API server can list,
// but events, which are a record and go by themselves. It needs an
// administrator's rights: a kind that cannot be listed is an error, since a
// leak could hide there.
func ListObjects(ctx context.Context, config *rest.Config) ([]LiveObject, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	// Every kind is listed, the deprecated ones too: that is no news.
	config.WarningHandlerWithContext = rest.NoWarnings{}
	discoverer, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("discovery client: %w", err)
	}
	lister, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("metadata client: %w", err)
	}
	groups, err := discoverer.ServerPreferredResourcesWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the kinds of the API server: %w", err)
	}
	var objects []LiveObject
	for _, group := range groups {
		version, err := schema.ParseGroupVersion(group.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("group %q: %w", group.GroupVersion, err)
		}
		for _, resource := range group.APIResources {
			if !slices.Contains(resource.Verbs, "list") || strings.Contains(resource.Name, "/") || isEvents(version.Group, resource.Name) {
				continue
			}
			found, err := listKind(ctx, lister, version.WithResource(resource.Name))
			if err != nil {
				return nil, err
			}
			objects = append(objects, found...)
		}
	}
	return objects, nil
}

func listKind(ctx context.Context, lister metadata.Interface, kind schema.GroupVersionResource) ([]LiveObject, error) {
	var objects []LiveObject
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := lister.Resource(kind).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind.Resource, err)
		}
		for _, item := range list.Items {
			object := LiveObject{
				Group: kind.Group, Resource: kind.Resource, Namespace: item.Namespace, Name: item.Name, UID: string(item.UID),
				Labels: item.Labels, Created: item.CreationTimestamp.Time, Deleting: item.DeletionTimestamp != nil,
			}
			for _, owner := range item.OwnerReferences {
				object.OwnerUIDs = append(object.OwnerUIDs, string(owner.UID))
			}
			objects = append(objects, object)
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return objects, nil
		}
	}
}

// ListAgents reads the registrations of a pool by plain HTTP. The base is the
// organisation's address; the token is a personal access token.
func ListAgents(ctx context.Context, client *http.Client, base, token string, poolID int) ([]LiveAgent, error) {
	address := fmt.Sprintf("%s/_apis/distributedtask/pools/%d/agents?api-version=7.1", strings.TrimSuffix(base, "/"), poolID)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	request.SetBasicAuth("", token)
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list agents: GET %s answered %s: is the token allowed to read pool %d?", address, response.Status, poolID)
	}
	var answer struct {
		Value []struct {
			ID   int64  `json:"id"`
			Name string `json:"name"`
		} `json:"value"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(body), "\ufeff")), &answer); err != nil {
		return nil, fmt.Errorf("list agents: the answer is not JSON: %w", err)
	}
	agents := make([]LiveAgent, 0, len(answer.Value))
	for _, agent := range answer.Value {
		agents = append(agents, LiveAgent{Pool: fmt.Sprint(poolID), ID: agent.ID, Name: agent.Name})
	}
	return agents, nil
}

func isEvents(group, resource string) bool {
	return resource == "events" && (group == "" || group == "events.k8s.io")
}
