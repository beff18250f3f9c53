package wire

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// The location ids of the resources that an agent uses, with the templates that
// hold where the service does not say otherwise.
const (
	locPools     = "a8c47e17-4d56-4a56-92bb-de7ea7dc65be"
	locAgents    = "e298ef32-5878-4cab-993c-043836571f42"
	locSessions  = "134e239e-2df3-4794-a6f6-24f1f19ec8dc"
	locMessages  = "c3a054f6-7a8a-49c0-944e-3a8e5d7adfd7"
	locRequests  = "fc825784-c92a-4299-9221-998a02d1b54f"
	locPackages  = "8ffcd551-079c-493a-9c02-54346299d144"
	tmplPools    = "_apis/distributedtask/pools"
	tmplAgents   = "_apis/distributedtask/pools/{poolId}/agents/{agentId}"
	tmplSessions = "_apis/distributedtask/pools/{poolId}/sessions/{sessionId}"
	tmplMessages = "_apis/distributedtask/pools/{poolId}/messages/{messageId}"
	tmplRequests = "_apis/distributedtask/pools/{poolId}/jobrequests/{requestId}"
	tmplPackages = "_apis/distributedtask/packages/{packageType}/{platform}/{version}"
	// The routes of a plan lie below the project that the job's message names.
	tmplPlan = "{scopeIdentifier}/_apis/distributedtask/hubs/{hubName}/plans/{planId}/"
)

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// Discover asks the service where its resources are, as the agent does when it
// connects. What it does not list keeps its well-known place.
func (c *Client) Discover(ctx context.Context) error {
	var answer struct {
		Value []struct {
			ID            string `json:"id"`
			Area          string `json:"area"`
			ResourceName  string `json:"resourceName"`
			RouteTemplate string `json:"routeTemplate"`
		} `json:"value"`
	}
	if err := c.do(ctx, call{method: http.MethodOptions, path: "/_apis/", out: &answer}); err != nil {
		return err
	}
	routes := make(map[string]string, len(answer.Value))
	for _, location := range answer.Value {
		routes[strings.ToLower(location.ID)] = strings.NewReplacer(
			"{area}", location.Area, "{resource}", location.ResourceName).Replace(location.RouteTemplate)
	}
	c.routes.Store(&routes)
	return nil
}

// route fills a template with pairs of names and values. Trailing parts that got
// no value are left out.
func (c *Client) route(location, template string, pairs ...string) string {
	if routes := c.routes.Load(); routes != nil {
		if listed, ok := (*routes)[location]; ok {
			template = listed
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		template = strings.ReplaceAll(template, "{"+pairs[i]+"}", url.PathEscape(pairs[i+1]))
	}
	var parts []string
	for part := range strings.SplitSeq(strings.Trim(template, "/"), "/") {
		if !placeholder.MatchString(part) {
			parts = append(parts, part)
		}
	}
	return "/" + strings.Join(parts, "/")
}
