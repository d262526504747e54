import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.Executors;
import java.util.stream.Collectors;

/** The two microservices of the tutorial, system and inventory: what is configured comes from the environment. */
public class Service {
    /** MicroProfile Config's lookup: system properties, then environment variables, then the default. */
    static String config(String name, String otherwise) {
        String property = System.getProperty(name);
        if (property != null) return property;
        String variable = name.replaceAll("[^A-Za-z0-9]", "_");
        for (String candidate : new String[] {name, variable, variable.toUpperCase()}) {
            String value = System.getenv(candidate);
            if (value != null) return value;
        }
        return otherwise;
    }

    static final String CREDENTIALS = "Basic " + Base64.getEncoder().encodeToString(
        (config("SYSTEM_APP_USERNAME", "bob") + ":" + config("SYSTEM_APP_PASSWORD", "bobpwd")).getBytes(StandardCharsets.UTF_8));
    static final Map<String, String> SYSTEMS = new ConcurrentSkipListMap<>();

    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(9080), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/health/ready", exchange -> answer(exchange, 200, "{\"status\":\"UP\"}"));
        if (arguments[0].equals("system")) {
            server.createContext("/system/properties", Service::properties);
        } else {
            server.createContext("/inventory/systems", Service::systems);
        }
        server.start();
        System.out.println("The " + arguments[0] + " service is ready.");
    }

    static void properties(HttpExchange exchange) throws IOException {
        if (!CREDENTIALS.equals(exchange.getRequestHeaders().getFirst("Authorization"))) {
            exchange.getResponseHeaders().set("WWW-Authenticate", "Basic realm=\"system\"");
            answer(exchange, 401, "");
            return;
        }
        exchange.getResponseHeaders().set("X-Pod-Name", config("HOSTNAME", ""));
        exchange.getResponseHeaders().set("X-App-Name", config("APP_NAME", "system"));
        Map<String, String> all = new TreeMap<>();
        System.getProperties().forEach((key, value) -> all.put(key.toString(), value.toString()));
        String lines = all.entrySet().stream().map(e -> quoted(e.getKey()) + ":" + quoted(e.getValue())).collect(Collectors.joining(","));
        answer(exchange, 200, "{" + lines + "}");
    }

    static void systems(HttpExchange exchange) throws IOException {
        String host = exchange.getRequestURI().getPath().substring("/inventory/systems".length()).replaceFirst("^/", "");
        if (host.isEmpty()) {
            answer(exchange, 200, "{\"systems\":[" + String.join(",", SYSTEMS.values()) + "],\"total\":" + SYSTEMS.size() + "}");
            return;
        }
        try {
            HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + host + ":9080/system/properties"))
                .header("Authorization", CREDENTIALS).build();
            HttpResponse<String> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
            if (response.statusCode() == HttpURLConnection.HTTP_OK) {
                SYSTEMS.put(host, "{\"hostname\":" + quoted(host) + ",\"properties\":" + response.body() + "}");
                answer(exchange, 200, response.body());
                return;
            }
            System.err.println("Response Status is not OK: " + response.statusCode());
        } catch (IOException | IllegalArgumentException | InterruptedException exception) {
            System.err.println("Runtime exception: " + exception);
        }
        answer(exchange, 404, "ERROR: Unknown hostname or the system service may not be running on " + host);
    }

    static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < ' ') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }

    static void answer(HttpExchange exchange, int status, String text) throws IOException {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        boolean head = exchange.getRequestMethod().equals("HEAD");
        if (status == 200) exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, head || bytes.length == 0 ? -1 : bytes.length);
        if (!head) exchange.getResponseBody().write(bytes);
        exchange.close();
    }
}
