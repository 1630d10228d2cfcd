// Shows /openapi.json with Swagger UI.

// Swagger UI sets HTML from text, which it sanitizes. The policy of the page still blocks scripts in that
// HTML, and this one permits no text as a script or as the address of one.
window.trustedTypes?.createPolicy("default", { createHTML: (text) => text });

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  showCommonExtensions: true,
  showExtensions: true,
  tryItOutEnabled: true,
});
