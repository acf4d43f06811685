import react from "@vitejs/plugin-react";
import license from "rollup-plugin-license";
import { defineConfig } from "vitest/config";

// The process that `npm run dev` asks.
const tocsin = process.env.TOCSIN ?? "http://127.0.0.1:9090";

export default defineConfig({
  // Relative: the path below which we are is known only when the page is served (<base href>).
  base: "",
  plugins: [
    react(),
    // The licences of what is shipped ask for their text to be shipped too.
    license({ thirdParty: { output: `${import.meta.dirname}/build/assets/licenses.txt` } }),
  ],
  build: {
    outDir: "build",
    assetsInlineLimit: 0, // Data URLs would have to be allowed by the content security policy.
    manifest: true, // for compress.mjs
    target: "es2022",
    chunkSizeWarningLimit: 1000,
    rolldownOptions: {
      output: {
        codeSplitting: {
          groups: [
            { name: "editor", test: /node_modules[\\/](@codemirror|@lezer|@prometheus-io|style-mod|w3c-keyname|crelt|@marijn)/ },
            { name: "graph", test: /node_modules[\\/]uplot/ },
            {
              name: "react",
              test: /node_modules[\\/](react|react-dom|scheduler|wouter|regexparam|@tanstack[\\/](react-query|query-core))[\\/]/,
            },
          ],
        },
      },
    },
  },
  server: {
    proxy: Object.fromEntries(["/api", "/-/", "/metrics", "/federate", "/alertmanager", "/version"].map((p) => [p, { target: tocsin }])),
  },
  test: { environment: "happy-dom", include: ["src/**/*.test.{ts,tsx}"] },
});
