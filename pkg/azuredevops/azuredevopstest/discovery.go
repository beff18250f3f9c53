package azuredevopstest

import (
	"net/http"
	"strconv"
	"strings"
)

// maxAPIVersion is the newest version of the REST API that is spoken.
const maxAPIVersion = "7.2"

// location is an entry of the service's table of routes, from which clients
// build their URLs.
type location struct {
	ID              string `json:"id"`
	Area            string `json:"area"`
	ResourceName    string `json:"resourceName"`
	RouteTemplate   string `json:"routeTemplate"`
	ResourceVersion int    `json:"resourceVersion"`
	MinVersion      string `json:"minVersion"`
	MaxVersion      string `json:"maxVersion"`
	ReleasedVersion string `json:"releasedVersion"`
}

// locations are the ids that Microsoft's clients have compiled in.
func locations() []location {
	const (
		dt    = "distributedtask"
		plan  = "{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/"
		pools = "_apis/{area}/pools/{poolId}/{resource}"
	)
	all := []location{
		{ID: "00d9565f-ed9c-4a06-9a50-00e7896ccab4", Area: "Location", ResourceName: "ConnectionData", RouteTemplate: "_apis/{resource}"},
		{ID: "e81700f7-3be2-46de-8624-2eb35882fcaa", Area: "Location", ResourceName: "ResourceAreas", RouteTemplate: "_apis/{resource}/{areaId}"},
		{ID: "a8c47e17-4d56-4a56-92bb-de7ea7dc65be", Area: dt, ResourceName: "pools", RouteTemplate: "_apis/{area}/{resource}/{poolId}", ReleasedVersion: maxAPIVersion},
		{ID: "e298ef32-5878-4cab-993c-043836571f42", Area: dt, ResourceName: "agents", RouteTemplate: pools + "/{agentId}", ReleasedVersion: maxAPIVersion},
		{ID: "134e239e-2df3-4794-a6f6-24f1f19ec8dc", Area: dt, ResourceName: "sessions", RouteTemplate: pools + "/{sessionId}"},
		{ID: "c3a054f6-7a8a-49c0-944e-3a8e5d7adfd7", Area: dt, ResourceName: "messages", RouteTemplate: pools + "/{messageId}"},
		{ID: "fc825784-c92a-4299-9221-998a02d1b54f", Area: dt, ResourceName: "jobrequests", RouteTemplate: pools + "/{requestId}"},
		{ID: "8ffcd551-079c-493a-9c02-54346299d144", Area: dt, ResourceName: "packages", RouteTemplate: "_apis/{area}/{resource}/{packageType}/{platform}/{version}", ResourceVersion: 2},
		{ID: "eae1d376-a8b1-4475-9041-1dfdbe8f0143", Area: dt, ResourceName: "resourceusage", RouteTemplate: "_apis/{area}/{resource}", ResourceVersion: 2},
		{ID: "8893bc5b-35b2-4be7-83cb-99e683551db4", Area: dt, ResourceName: "records", RouteTemplate: plan + "timelines/{timelineId}/{resource}"},
		{ID: "858983e4-19bd-4c5e-864c-507b59b58b12", Area: dt, ResourceName: "feed", RouteTemplate: plan + "timelines/{timelineId}/records/{recordId}/{resource}"},
		{ID: "46f5667d-263a-4684-91b1-dff7fdcf64e2", Area: dt, ResourceName: "logs", RouteTemplate: plan + "{resource}/{logId}"},
		{ID: "557624af-b29e-4c20-8ab0-0399d2204f3f", Area: dt, ResourceName: "events", RouteTemplate: plan + "{resource}"},
	}
	for i := range all {
		all[i].MinVersion = "1.0"
		all[i].MaxVersion = maxAPIVersion
		if all[i].ReleasedVersion == "" {
			all[i].ReleasedVersion = "0.0"
		}
		if all[i].ResourceVersion == 0 {
			all[i].ResourceVersion = 1
		}
	}
	return all
}

func (c *call) options() error {
	value := []location{}
	for _, l := range locations() {
		if area, ok := c.vars["area"]; !ok || strings.EqualFold(area, l.Area) {
			value = append(value, l)
		}
	}
	return c.reply(http.StatusOK, list{len(value), value})
}

// resourceArea is a part of the service that may live at another address.
type resourceArea struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	LocationURL string `json:"locationUrl"`
}

func (c *call) areas() []resourceArea {
	at := c.base + "/"
	return []resourceArea{
		{"a85b8835-c1a1-4aac-ae97-1c3d0ba72dbd", "distributedtask", at},
		{"79134c72-4a58-4b42-976c-04e7115f32bf", "core", at},
		{"5d6898bb-45ec-463f-95f9-54d49c71752e", "build", at},
		{"94ff054d-5ee1-413d-9341-3f4a7827de2e", "Location", at},
	}
}

func (c *call) resourceAreas() error {
	value := c.areas()
	return c.reply(http.StatusOK, list{len(value), value})
}

func (c *call) resourceArea() error {
	for _, a := range c.areas() {
		if strings.EqualFold(a.ID, c.vars["areaId"]) {
			return c.reply(http.StatusOK, a)
		}
	}
	// An unknown area is no error to the service: the body is "null".
	return c.reply(http.StatusOK, nil)
}

// serviceDefinition is a location in the older form that connection data has.
type serviceDefinition struct {
	ServiceType       string `json:"serviceType"`
	Identifier        string `json:"identifier"`
	DisplayName       string `json:"displayName"`
	RelativeToSetting string `json:"relativeToSetting"`
	RelativePath      string `json:"relativePath"`
	ServiceOwner      string `json:"serviceOwner"`
	ResourceVersion   int    `json:"resourceVersion"`
	MinVersion        string `json:"minVersion"`
	MaxVersion        string `json:"maxVersion"`
	ReleasedVersion   string `json:"releasedVersion"`
}

// serviceOwner is the id of Azure DevOps itself among Microsoft's services.
const serviceOwner = "00025394-6065-48ca-87d9-7f5672854ef7"

func (c *call) connectionData() error {
	user := map[string]any{
		"id":                  c.srv.hostID.String(),
		"descriptor":          "Microsoft.IdentityModel.Claims.ClaimsIdentity;" + c.who.name,
		"subjectDescriptor":   "aad." + c.who.name,
		"providerDisplayName": c.who.name,
		"isActive":            true,
		"properties":          map[string]any{"Account": map[string]string{"$type": "System.String", "$value": c.who.name}},
	}
	data := map[string]any{
		"serviceOwner":                serviceOwner,
		"defaultAccessMappingMoniker": "PublicAccessMapping",
		"lastChangeId":                1,
		"lastChangeId64":              1,
		"clientCacheFresh":            false,
		"clientCacheTimeToLive":       3600,
		"accessMappings": []map[string]string{{
			"displayName": "Host Guid Access Mapping", "moniker": "PublicAccessMapping",
			"accessPoint": c.base + "/", "serviceOwner": serviceOwner,
		}},
	}
	if v, _ := c.param("connectOptions"); includesServices(v) {
		var definitions []serviceDefinition
		for _, l := range locations() {
			definitions = append(definitions, serviceDefinition{
				ServiceType: l.Area, Identifier: l.ID, DisplayName: l.ResourceName,
				RelativeToSetting: "context", RelativePath: "/" + l.RouteTemplate, ServiceOwner: serviceOwner,
				ResourceVersion: l.ResourceVersion, MinVersion: l.MinVersion, MaxVersion: l.MaxVersion, ReleasedVersion: l.ReleasedVersion,
			})
		}
		data["serviceDefinitions"] = definitions
	}
	deployment := enumValue{"hosted", 2}
	if strings.Contains(c.srv.opts.Organisation, "/") {
		deployment = enumValue{"onPremises", 1}
	}
	return c.reply(http.StatusOK, map[string]any{
		"authenticatedUser":   user,
		"authorizedUser":      user,
		"instanceId":          c.srv.hostID.String(),
		"deploymentId":        c.srv.hostID.String(),
		"deploymentType":      c.enum(deployment),
		"locationServiceData": data,
	})
}

// includesServices reads connectOptions, a set of flags that comes as number or
// as names.
func includesServices(v string) bool {
	if n, err := strconv.Atoi(v); err == nil {
		return n&1 != 0
	}
	return strings.Contains(strings.ToLower(v), "includeservices")
}
