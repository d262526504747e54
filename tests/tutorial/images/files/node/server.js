// The tutorial's node-hello.
const http = require('http');
const server = http.createServer((request, response) => {
  console.log(`Received request for URL: ${request.url}`);
  response.writeHead(200);
  response.end('Hello Kubernetes!');
});
process.on('SIGTERM', () => process.exit(0));
server.listen(8080);
